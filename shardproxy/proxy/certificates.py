"""TLS as the proxy uses it: contexts from files, what is wrong with those, and how each node is reached.

Owns every `ssl.SSLContext`. Files are read when it starts and at each reload, in every process; what cannot
be used is a mistake of the configuration, told in a few words. Nothing here shows a key or a password.
"""

import datetime
import hashlib
import os
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from shardproxy.config import Config, ConfigError, Credentials, KeyConfig, NodeTlsConfig, TlsConfig, tables
from shardproxy.config.tables import Reader

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
CLIENT_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
SOON = datetime.timedelta(days=14)
BEGIN, END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


class NodeTls(NamedTuple):
    """server_name: what is asked for, and must be in the certificate."""

    context: ssl.SSLContext
    server_name: str


class Way(NamedTuple):
    """How to reach a node: its login, (username or "", password), its TLS, and what it speaks."""

    login: tuple[str, str] | None = None
    tls: NodeTls | None = None
    memcached: bool = False


class Ways:
    """All logins and contexts of a configuration, read from its files."""

    def __init__(
        self,
        credentials: Credentials,
        nodes: Mapping[tuple[str, str], NodeTls],
        server: ssl.SSLContext | None,
        fingerprint: str,
        memcached: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        self.credentials, self.server, self.fingerprint = credentials, server, fingerprint
        self._nodes, self._memcached = nodes, memcached

    def of(self, pool: str, shard: str) -> Way:
        place = pool, shard
        return Way(self.credentials.of(pool, shard), self._nodes.get(place), place in self._memcached)

    @classmethod
    def read(
        cls,
        config: Config,
        credentials: Credentials | None = None,
        environ: Mapping[str, str] = os.environ,
        file: str = "configuration",
    ) -> Self:
        """Raises ConfigError with all that cannot be read or used. credentials: if they are known already."""
        if credentials is None:
            credentials = Credentials.read(config, environ, file)
        maker = _Maker(file, environ)
        server = maker.server(config.tls) if config.tls.cert else None
        nodes = {}
        for pool_name, pool in config.pool.items():
            if not any(shard.tls for shard in pool.shards.values()):
                continue
            context = maker.node(pool.tls, f"pool.{pool_name}.tls")
            for name, shard in pool.shards.items():
                if shard.tls:
                    host = shard.address.rpartition(":")[0].strip("[]")
                    nodes[pool_name, name] = NodeTls(context, pool.tls.server_name or host)
        fingerprint = hashlib.sha256(b"\0".join(map(maker.content, files(config)))).hexdigest()
        if maker.reader.mistakes:
            raise ConfigError(list(dict.fromkeys(maker.reader.mistakes)))
        memcached = frozenset(
            (pool_name, name)
            for pool_name, pool in config.pool.items()
            for name, shard in pool.shards.items()
            if shard.protocol == "memcached"
        )
        return cls(credentials, nodes, server, fingerprint, memcached)


def files(config: Config) -> list[str]:
    """Whatever TLS reads, and what is to be looked at for changes."""
    names = ("cert", "key", "ca", "key_password_file")
    return [path for table in _tables(config) for name in names if (path := getattr(table, name, None))]


def _tables(config: Config) -> list[TlsConfig | KeyConfig | NodeTlsConfig]:
    return [config.tls, *config.tls.sni.values(), *(pool.tls for pool in config.pool.values())]


class _Maker:
    """Contexts from tables; gathers mistakes."""

    def __init__(self, file: str, environ: Mapping[str, str]) -> None:
        self.reader, self._environ = Reader(file, Config), environ

    def server(self, config: TlsConfig) -> ssl.SSLContext:
        others = {
            name.lower(): self._server(config, own, tables.join("tls.sni", name))
            for name, own in config.sni.items()
        }
        context = self._server(config, config, "tls")

        def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            if other := others.get((name or "").lower()):
                connection.context = other

        if others:
            context.sni_callback = choose
        return context

    def _server(self, config: TlsConfig, own: TlsConfig | KeyConfig, where: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.options |= ssl.OP_NO_RENEGOTIATION
        self._common(context, config, "tls")
        self._chain(context, own, where)
        context.verify_mode = CLIENT_VERIFY[config.verify]
        if config.ca:
            self._ca(context, config.ca, "tls")
        return context

    def node(self, config: NodeTlsConfig, where: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._common(context, config, where)
        context.check_hostname = config.verify == "full"
        context.verify_mode = ssl.CERT_NONE if config.verify == "none" else ssl.CERT_REQUIRED
        if config.ca:
            self._ca(context, config.ca, where)
        elif config.verify != "none":
            context.load_default_certs()
        if config.cert:
            self._chain(context, config, where)
        return context

    def _common(self, context: ssl.SSLContext, config: TlsConfig | NodeTlsConfig, where: str) -> None:
        context.minimum_version = VERSIONS[config.minimum]
        if config.ciphers:
            try:
                context.set_ciphers(config.ciphers)
            except ssl.SSLError:
                self.reader.mistake(
                    f"{where}.ciphers", "no cipher that OpenSSL has", "`openssl ciphers` lists them"
                )

    def _ca(self, context: ssl.SSLContext, path: str, where: str) -> None:
        if not self._readable(path, f"{where}.ca"):
            return
        try:
            context.load_verify_locations(path)
        except ssl.SSLError:
            self.reader.mistake(f"{where}.ca", f"{path}, in which is no certificate", "certificates in PEM")

    def _chain(self, context: ssl.SSLContext, own: TlsConfig | KeyConfig | NodeTlsConfig, where: str) -> None:
        assert own.cert and own.key
        if not (self._readable(own.cert, f"{where}.cert") and self._readable(own.key, f"{where}.key")):
            return
        if BEGIN not in self.content(own.cert):
            self.reader.mistake(
                f"{where}.cert", f"{own.cert}, in which is no certificate", "a certificate in PEM"
            )
            return
        password, asked = self._password(own, where), []

        def tell() -> str:  # without it OpenSSL would ask the terminal
            asked.append(True)
            return password

        try:
            context.load_cert_chain(own.cert, own.key, tell)
        except (ssl.SSLError, ValueError) as error:
            if "KEY_VALUES_MISMATCH" in str(error):
                found, allowed = (
                    f"{own.key}, which is not the key of {own.cert}",
                    "the key of that certificate",
                )
            elif asked:
                found, allowed = (
                    f"{own.key}, which {'its password does not open' if password else 'has a password'}",
                    "key_password_env or key_password_file with its password",
                )
            else:
                found, allowed = (
                    f"{own.key}, in which is no private key that can be used",
                    "a private key in PEM",
                )
            self.reader.mistake(f"{where}.key", found, allowed)

    def _password(self, own: TlsConfig | KeyConfig | NodeTlsConfig, where: str) -> str:
        if variable := own.key_password_env:
            if not self._environ.get(variable):
                self.reader.mistake(
                    f"{where}.key_password_env", f"{variable}, which is not set", "a variable that is set"
                )
            return self._environ.get(variable, "")
        if (path := own.key_password_file) and self._readable(path, f"{where}.key_password_file"):
            return self.content(path).decode(errors="replace").removesuffix("\n")
        return ""

    def _readable(self, path: str, where: str) -> bool:
        try:
            with open(path, "rb"):
                return True
        except OSError as error:
            self.reader.mistake(where, f"{path}, which cannot be read ({error.strerror})", "a file in PEM")
            return False

    def content(self, path: str) -> bytes:
        try:
            return Path(path).read_bytes()
        except OSError:
            return b""


# --- how long they last ---


def lasting(config: Config, now: datetime.datetime) -> Iterator[tuple[str, str, bool]]:
    """(file, what is wrong or soon will be with its certificate's time, whether it is wrong now)."""
    for path in dict.fromkeys(table.cert for table in _tables(config) if table.cert):
        try:
            begins, ends = validity(Path(path).read_bytes())
        except (OSError, ValueError):
            yield path, "its certificate cannot be read", True
            continue
        if ends < now:
            yield path, f"its certificate expired on {ends:%Y-%m-%d}", True
        elif begins > now:
            yield path, f"its certificate is not valid before {begins:%Y-%m-%d}", True
        elif ends < now + SOON:
            yield path, f"its certificate expires on {ends:%Y-%m-%d}", False


def validity(pem: bytes) -> tuple[datetime.datetime, datetime.datetime]:
    """From when until when the first certificate of a PEM file is valid. Raises ValueError: there is none."""
    start = pem.index(BEGIN)
    der = ssl.PEM_cert_to_DER_cert(pem[start : pem.index(END, start) + len(END)].decode("ascii") + "\n")
    # Certificate { TBSCertificate { [0] version?, serial, algorithm, issuer, validity { from, until } ...
    body = _fields(_fields(der)[0][1])[0][1]
    fields = _fields(body)
    times = _fields(fields[4 if fields[0][0] == 0xA0 else 3][1])
    begins, ends = (_time(tag, value.decode("ascii")) for tag, value in times)
    return begins, ends


def _fields(der: bytes) -> list[tuple[int, bytes]]:
    """The (tag, content) of each element in a row of them, DER."""
    found, at = [], 0
    while at < len(der):
        tag, size = der[at], der[at + 1]
        at += 2
        if size & 0x80:
            more = size & 0x7F
            size = int.from_bytes(der[at : at + more], "big")
            at += more
        found.append((tag, der[at : at + size]))
        at += size
    return found


def _time(tag: int, text: str) -> datetime.datetime:
    """UTCTime has two digits of a year, from 1950 on; GeneralizedTime four."""
    if tag == 0x17:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC)
