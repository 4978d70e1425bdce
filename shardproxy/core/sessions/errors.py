"""Every exception of the session store, grouped by whose fault it is. None quotes a secret or an id."""


class SessionError(Exception):
    """The base of all of them."""


# --- the store's, or what is behind it ---


class SessionUnavailable(SessionError):
    """The store cannot be reached, or could not say: nothing is known of the session, and nothing is saved.

    Adapters answer 503 (`fail = "error"`).
    """


class UnfitPool(SessionError):
    """Where sessions would be kept is not fit for them; says why, by name of the fault."""


# --- other requests' ---


class SessionConflict(SessionError):
    """`save(optimistic=True)`: another request has changed the session since it was loaded."""


class SessionGone(SessionError):
    """The session was destroyed, revoked or has expired while this request had it: nothing was saved."""


class TooManySessions(SessionError):
    """The user has `max_sessions` already, and the rule is to refuse another."""


# --- the application's ---


class BadSecrets(SessionError, ValueError):
    """A secret is missing or too short."""


class SessionTooLarge(SessionError, ValueError):
    """A field, or all of them, are over `max_size` bytes."""


class NotStorable(SessionError, TypeError, ValueError):
    """A value that would not come back as it is: NaN, half a surrogate pair, an object. Names the field."""


class NotANumber(SessionError, TypeError):
    """`incr` of a field that holds no integer, `append` to one that holds no list."""
