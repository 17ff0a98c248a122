"""Batch: sessions advanced together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from minimax2 import _native
from minimax2.errors import ArgumentError
from minimax2.handle import Handle
from minimax2.session import Session

if TYPE_CHECKING:
    from minimax2.model import Model


class Batch(Handle):
    """Several sessions of one model that go through the weights together; the same bits as alone.

    A member is run by its batch only (running it alone raises BusyError); feed, rewind and sample
    it as ever. Used by one thread at a time. Closing lets the members go on alone.
    """

    __slots__ = ("_event", "_sessions", "model")

    def __init__(self, model: Model, sessions: Iterable[Session] = ()) -> None:
        super().__init__(_native.batch_new(model._c))
        self._event = _native.new_event()
        self._sessions: list[Session] = []
        self.model = model
        for session in sessions:
            self.add(session)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The members, a tuple."""
        return tuple(self._sessions)

    def add(self, session: Session) -> None:
        """Make a session of the same model a member.

        Raises BusyError while a trace or hooks run the session.
        """
        if not isinstance(session, Session):
            raise TypeError(f"a batch is of sessions, not of {type(session).__name__}")
        session._check_free()
        _native.batch_add(self._c, session._c)
        self._sessions.append(session)

    def remove(self, session: Session) -> None:
        """Let a member go on alone."""
        if session not in self._sessions:
            raise ArgumentError("the session is not a member of this batch")
        _native.batch_remove(self._c, session._c)
        self._sessions.remove(session)

    def run(self, seconds: float | None = None) -> bool:
        """Work until every member has caught up, or for about `seconds`. True if all have.

        Ctrl-C interrupts between two slices; nothing is lost, run() goes on. Raises BusyError while
        a trace of a member is under way.
        """
        for session in self._sessions:
            session._check_free()
        return _native.batch_run(self._c, self._event, _native.duration(seconds))

    def close(self) -> None:
        """Let all members go on alone."""
        super().close()
        self._sessions.clear()

    def __len__(self) -> int:
        return len(self._sessions)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self)} sessions"
        return f"<Batch {state}>"
