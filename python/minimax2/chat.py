"""Chat: a conversation on one session."""

from minimax2.session import Session
from minimax2.stream import Stream


class Chat:
    """`model.chat(system=...)`, then send() turn after turn.

    The tokens that were sampled stay in the timeline as they are, thinking included; only what is
    new is rendered and fed.
    """

    def __init__(self, model, system=None, context=None, **options):
        self.session = Session(model, context=context)
        self.model = model
        self._messages = [] if system is None else [{"role": "system", "content": system}]
        self._options = options
        self._stream = None  # of the last turn, which is not yet in _messages

    @property
    def messages(self):
        """The turns so far, for reading: dicts of role, content and thinking."""
        if self._stream is None:
            return list(self._messages)
        return [*self._messages, {"role": "assistant", "content": self._stream.text,
                                  "thinking": self._stream.thinking}]

    def send(self, text, *, stream=False, **options):
        """Say something: the answer as a Generation, or with stream=True a Stream of it.

        A turn that was cut short by an interrupt, a cancelled stream or max_new_tokens is closed
        where it stopped. Raises ContextFull if there is no room left.
        """
        message = {"role": "user", "content": text}
        self.session.feed(self._continuation(message))
        self._messages, self._stream = [*self.messages, message], None
        self._stream = Stream(self.session, thinking=True, **{**self._options, **options})
        return self._stream if stream else self._stream.result()

    def _continuation(self, message):
        """The ids that a new user message adds to the timeline."""
        tokenizer, session = self.model.tokenizer, self.session
        if not session.length:
            return tokenizer.apply_chat_template([*self._messages, message])
        # Render the turn behind a known one and cut that one off: what the format puts between two
        # turns stays.
        before = [{"role": "user", "content": "."}]
        head = tokenizer.apply_chat_template(before, add_generation_prompt=False)
        both = tokenizer.apply_chat_template([*before, message])
        end = len(head) - 1 - head[::-1].index(tokenizer.eos)
        if session.tokens[-1] == tokenizer.eos:
            end += 1
        return both[end:]

    def close(self):
        """Close the session."""
        self.session.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __repr__(self):
        return f"<Chat {len(self.messages)} messages, {self.session!r}>"
