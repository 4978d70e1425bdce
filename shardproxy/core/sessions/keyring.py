"""What is derived from the secrets: ids, cookies, user tags, and the names under which records are stored.

Pure: random bytes are arguments. Every key is BLAKE2b of a secret for one purpose (its `person`), so that
none of them tells another. The layout of a cookie, 60 bytes as 80 characters of base64url:

    kid (2)  which secret made it, so that newest and older ones live side by side
    tag (15) the shard's: of a user (keyed hash of his id) or random; record, index and epoch share it
    id (32)  256 random bits; stored nowhere, only its keyed hash names the record
    mac (11) keyed by the secret: a forgery is refused before any network, in constant time
"""

import hashlib
import hmac
import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence

from shardproxy.core.sessions.errors import BadSecrets

KID, TAG, ID, MAC = 2, 15, 32, 11  # bytes
HASH = 18  # bytes of a record's name: 24 characters
LEAST_SECRET = 16  # bytes: less is a password, not a secret
_COOKIE = re.compile(r"[A-Za-z0-9_-]{80}").fullmatch


_URL = bytes.maketrans(b"+/", b"-_")


def text(data: bytes) -> str:
    """base64url; lengths here are multiples of three or need no padding."""
    return b2a_base64(data, newline=False).translate(_URL, b"=").decode()


def _bytes(text: str) -> bytes:
    """And back; its length is a multiple of four."""
    return a2b_base64(text.replace("-", "+").replace("_", "/"))


class Secret:
    """One secret, and what it is used for. Never in a repr."""

    __slots__ = ("_cookie", "_hash", "_root", "kid")

    def __init__(self, secret: str | bytes) -> None:
        data = secret.encode() if isinstance(secret, str) else bytes(secret)
        if len(data) < LEAST_SECRET:
            raise BadSecrets(f"a secret of sessions has at least {LEAST_SECRET} bytes, not {len(data)}")
        self._root = hashlib.blake2b(data, person=b"sp session root").digest()
        self.kid = self.keyed(b"kid", b"", KID)
        # What every request needs, begun
        self._cookie, self._hash = self._begun(b"cookie", MAC), self._begun(b"store key", HASH)

    def _begun(self, purpose: bytes, size: int) -> hashlib.blake2b:
        return hashlib.blake2b(digest_size=size, key=self._root, person=purpose)

    def keyed(self, purpose: bytes, data: bytes, size: int) -> bytes:
        return hashlib.blake2b(data, digest_size=size, key=self._root, person=purpose).digest()

    def mac_of(self, body: bytes) -> bytes:
        """Of a cookie: what nobody else can add to it."""
        begun = self._cookie.copy()
        begun.update(body)
        return begun.digest()

    def tag_of(self, user_id: str) -> str:
        """The tag of a user: where his record, index and epoch are."""
        return text(self.keyed(b"utag", user_id.encode("utf-8", "surrogatepass"), TAG))

    def hash_of(self, id: bytes) -> str:
        """The name of a session's record: 24 characters that do not tell the id."""
        begun = self._hash.copy()
        begun.update(id)
        return text(begun.digest())

    def next_id(self, id: bytes, nonce: str) -> bytes:
        """The id that follows at the next renewal: two that renew at once agree, nobody else knows it."""
        return self.keyed(b"next id", id + nonce.encode(), ID)

    def cipher_key(self) -> bytes:
        """A key of AES-256."""
        return self.keyed(b"encryption", b"", 32)

    def log_name(self, cookie: str) -> str:
        """What a log may say of a cookie: a salted hash."""
        return text(self.keyed(b"log", cookie.encode("utf-8", "surrogatepass"), 9))


class Identity:
    """What a genuine cookie says. tag: 20 characters. secret: the one that made the cookie.

    keys: kept by `Rules.keys`, which makes them.
    """

    __slots__ = ("_hash", "id", "keys", "secret", "tag")

    def __init__(self, secret: Secret, tag: str, id: bytes) -> None:
        self.secret, self.tag, self.id = secret, tag, id
        self._hash = ""
        self.keys: tuple[str, str] | None = None

    @property
    def hash(self) -> str:
        """The name of its record; asked for many times a request, made once."""
        if not self._hash:
            self._hash = self.secret.hash_of(self.id)
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and (self.secret, self.tag, self.id) == (
            other.secret,
            other.tag,
            other.id,
        )

    def __hash__(self) -> int:
        return hash((self.tag, self.id))

    def __repr__(self) -> str:
        return f"Identity({self.hash})"


class Keyring:
    """secrets: the newest first, which makes new cookies; the older ones are still accepted."""

    def __init__(self, secrets: Sequence[str | bytes]) -> None:
        if isinstance(secrets, str | bytes) or not secrets:
            raise BadSecrets("secrets is a list, the newest first, of one or more")
        self.secrets = tuple(map(Secret, secrets))
        self.newest = self.secrets[0]
        self._by_kid: dict[bytes, list[Secret]] = {}
        for secret in self.secrets:
            self._by_kid.setdefault(secret.kid, []).append(secret)

    def of_kid(self, kid: bytes) -> Sequence[Secret]:
        """The secrets of that name: one, or none; more only by chance."""
        return self._by_kid.get(kid, ())

    def cookie(self, who: Identity) -> str:
        """The value of the cookie."""
        body = who.secret.kid + _bytes(who.tag) + who.id
        return text(body + who.secret.mac_of(body))

    def identify(self, cookie: str) -> Identity | None:
        """Whose cookie that is; None: none of ours, whatever it is."""
        if not _COOKIE(cookie):
            return None
        data = _bytes(cookie)
        body, mac = data[:-MAC], data[-MAC:]
        for secret in self._by_kid.get(body[:KID], ()):
            if hmac.compare_digest(mac, secret.mac_of(body)):
                return Identity(secret, cookie_tag(body), body[KID + TAG :])
        return None

    def tags_of(self, user_id: str) -> list[str]:
        """Where a user's sessions may be, those of older secrets first, the newest last.

        In this order: who ends all sessions ends them where they come from before where they would go to.
        """
        return [secret.tag_of(user_id) for secret in reversed(self.secrets)]

    def owns(self, tag: str, user_id: str) -> bool:
        """Whether that is a tag of this user, by any of the secrets."""
        return any(hmac.compare_digest(tag, secret.tag_of(user_id)) for secret in self.secrets)


def cookie_tag(body: bytes) -> str:
    return text(body[KID : KID + TAG])
