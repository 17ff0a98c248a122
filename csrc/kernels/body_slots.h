/* The matrix products of a vector level as slots of the table. */

#define SLOT(name, shape, dtype)                                                                   \
    static void name(float *const *out, const mm2_weight *w, int32_t first, int32_t count,         \
                     const void *const *acts, int32_t rows)                                        \
    {                                                                                              \
        shape(dtype, out, w, first, count, acts, rows);                                            \
    }

SLOT(matmul_f32, matmul_exact, MM2_F32)
SLOT(matmul_f16, matmul_exact, MM2_F16)
SLOT(matmul_bf16, matmul_bf16_acts, MM2_BF16)
SLOT(matmul_f8_e4m3, matmul_bf16_acts, MM2_F8_E4M3)
SLOT(matmul_q8_0, matmul_integer, MM2_Q8_0)
SLOT(matmul_q4_0, matmul_integer, MM2_Q4_0)
SLOT(matmul_q5_0, matmul_integer, MM2_Q5_0)
SLOT(matmul_iq4_nl, matmul_integer, MM2_IQ4_NL)
SLOT(matmul_q2_k, matmul_integer, MM2_Q2_K)
SLOT(matmul_q3_k, matmul_integer, MM2_Q3_K)
SLOT(matmul_q4_k, matmul_integer, MM2_Q4_K)
SLOT(matmul_q5_k, matmul_integer, MM2_Q5_K)
SLOT(matmul_q6_k, matmul_integer, MM2_Q6_K)
SLOT(matmul_iq4_xs, matmul_integer, MM2_IQ4_XS)
SLOT(exact_bf16, matmul_exact, MM2_BF16)
SLOT(exact_f8_e4m3, matmul_exact, MM2_F8_E4M3)
SLOT(exact_q8_0, matmul_exact, MM2_Q8_0)
SLOT(exact_q4_0, matmul_exact, MM2_Q4_0)
SLOT(exact_q5_0, matmul_exact, MM2_Q5_0)
SLOT(exact_iq4_nl, matmul_exact, MM2_IQ4_NL)
SLOT(exact_q2_k, matmul_exact, MM2_Q2_K)
SLOT(exact_q3_k, matmul_exact, MM2_Q3_K)
SLOT(exact_q4_k, matmul_exact, MM2_Q4_K)
SLOT(exact_q5_k, matmul_exact, MM2_Q5_K)
SLOT(exact_q6_k, matmul_exact, MM2_Q6_K)
SLOT(exact_iq4_xs, matmul_exact, MM2_IQ4_XS)

static void fill_matmul(mm2_kernels *t)
{
    t->matmul[MM2_F32] = matmul_f32;
    t->matmul[MM2_F16] = matmul_f16;
    t->matmul[MM2_BF16] = matmul_bf16;
    t->matmul[MM2_F8_E4M3] = matmul_f8_e4m3;
    t->matmul[MM2_Q8_0] = matmul_q8_0;
    t->matmul[MM2_Q4_0] = matmul_q4_0;
    t->matmul[MM2_Q5_0] = matmul_q5_0;
    t->matmul[MM2_IQ4_NL] = matmul_iq4_nl;
    t->matmul[MM2_Q2_K] = matmul_q2_k;
    t->matmul[MM2_Q3_K] = matmul_q3_k;
    t->matmul[MM2_Q4_K] = matmul_q4_k;
    t->matmul[MM2_Q5_K] = matmul_q5_k;
    t->matmul[MM2_Q6_K] = matmul_q6_k;
    t->matmul[MM2_IQ4_XS] = matmul_iq4_xs;
    t->exact[MM2_F32] = matmul_f32;
    t->exact[MM2_F16] = matmul_f16;
    t->exact[MM2_BF16] = exact_bf16;
    t->exact[MM2_F8_E4M3] = exact_f8_e4m3;
    t->exact[MM2_Q8_0] = exact_q8_0;
    t->exact[MM2_Q4_0] = exact_q4_0;
    t->exact[MM2_Q5_0] = exact_q5_0;
    t->exact[MM2_IQ4_NL] = exact_iq4_nl;
    t->exact[MM2_Q2_K] = exact_q2_k;
    t->exact[MM2_Q3_K] = exact_q3_k;
    t->exact[MM2_Q4_K] = exact_q4_k;
    t->exact[MM2_Q5_K] = exact_q5_k;
    t->exact[MM2_Q6_K] = exact_q6_k;
    t->exact[MM2_IQ4_XS] = exact_iq4_xs;
}
