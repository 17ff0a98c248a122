/* The angle is the float32 product position * frequency, as in the reference implementation; at the
 * far end of the context this product is what limits precision, not the sine. Sine and cosine are
 * our own so that the same angle gives the same bits on every machine: reduction by pi / 2 in two
 * parts, then the Taylor series to x^15, whose error on |x| <= pi / 4 is below 1e-15, far under
 * half a float ulp. */
#include "run/rope.h"

#include <math.h>

void mm2_rope_frequencies(float *frequency, float theta, int32_t half)
{
    for (int32_t i = 0; i < half; i++)
        frequency[i] = (float)pow((double)theta, -(double)i / half);
}

static double sine_of(double x)
{
    double y = x * x;
    return x * (1 + y * (-1.0 / 6 +
                         y * (1.0 / 120 +
                              y * (-1.0 / 5040 +
                                   y * (1.0 / 362880 + y * (-1.0 / 39916800 +
                                                            y * (1.0 / 6227020800 +
                                                                 y * (-1.0 / 1307674368000))))))));
}

static double cosine_of(double x)
{
    double y = x * x;
    return 1 + y * (-0.5 + y * (1.0 / 24 +
                                y * (-1.0 / 720 +
                                     y * (1.0 / 40320 +
                                          y * (-1.0 / 3628800 + y * (1.0 / 479001600 +
                                                                     y * (-1.0 / 87178291200)))))));
}

void mm2_rope_angles(float *cosine, float *sine, const float *frequency, int32_t half,
                     int32_t position)
{
    static const double two_over_pi = 0.63661977236758134308;
    static const double pi_2_high = 1.57079632673412561417, pi_2_low = 6.07710050650619224932e-11;
    for (int32_t i = 0; i < half; i++) {
        double angle = (float)position * frequency[i];
        double turns = floor(angle * two_over_pi + 0.5); /* angles are not negative */
        double x = angle - turns * pi_2_high - turns * pi_2_low;
        double s = sine_of(x), c = cosine_of(x);
        /* A tiny theta makes angles that no integer holds; what has no angle is no number. */
        double quarter = turns - 4 * floor(turns / 4);
        if (!(quarter >= 0 && quarter < 4)) {
            cosine[i] = sine[i] = NAN;
            continue;
        }
        switch ((int32_t)quarter) {
        case 0:
            cosine[i] = (float)c, sine[i] = (float)s;
            break;
        case 1:
            cosine[i] = (float)-s, sine[i] = (float)c;
            break;
        case 2:
            cosine[i] = (float)-c, sine[i] = (float)-s;
            break;
        default:
            cosine[i] = (float)s, sine[i] = (float)-c;
        }
    }
}
