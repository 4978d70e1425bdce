"""`[tls]`, `[tls.sni]` and `[pool.NAME.tls]` of shardproxy.toml: TLS of clients, and to nodes."""

from __future__ import annotations  # made when they are asked for: most clients never do

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from shardproxy.config import text
from shardproxy.config.tables import Record, Rule

KEY_ENV = "the environment variable that holds the key's password"
KEY_FILE = "the file that holds the key's password"


class KeyConfig(Record, frozen=True, kw_only=True):
    """A certificate for clients that ask for this host name."""

    cert: Annotated[text.PemPath, "PEM: the certificate, and those between it and its CA"]
    key: Annotated[text.KeyPath, "PEM: its private key"]
    key_password_env: Annotated[text.KeyVariable | None, KEY_ENV] = None
    key_password_file: Annotated[text.KeyFilePath | None, KEY_FILE] = None


class TlsConfig(Record, frozen=True, kw_only=True):
    """TLS of clients, on the addresses in `listen` that begin with tls://."""

    cert: Annotated[text.PemPath | None, "PEM: the certificate, and those between it and its CA"] = None
    key: Annotated[text.KeyPath | None, "PEM: its private key"] = None
    key_password_env: Annotated[text.KeyVariable | None, KEY_ENV] = None
    key_password_file: Annotated[text.KeyFilePath | None, KEY_FILE] = None
    ca: Annotated[text.CaPath | None, "PEM: the CAs that clients' certificates may be from"] = None
    verify: Annotated[
        Literal["none", "optional", "required"], "whether clients must show a certificate of `ca`"
    ] = "none"
    user_from_cert: Annotated[bool, "the name in a client's certificate is the user it is logged in as"] = (
        False
    )
    minimum: Annotated[Literal["1.2", "1.3"], "the oldest version of TLS that is spoken"] = "1.2"
    ciphers: Annotated[text.Ciphers | None, "for TLS 1.2, as OpenSSL lists them; none: Python's choice"] = (
        None
    )
    sni: Annotated[
        dict[str, KeyConfig],
        Meta(extra={"name": text.matching(r"[A-Za-z0-9_.-]{1,253}", "a host name")}),
        "other certificates, by the host name that a client asks for",
    ] = field(default_factory=dict)

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ("cert", "key"),
            lambda it: it.cert and not it.key and "no key",
            "key, with the certificate's private key",
        ),
        Rule(
            ("key", "cert"),
            lambda it: it.key and not it.cert and "no cert",
            "cert, with the key's certificate",
        ),
        Rule(
            ("verify", "ca"),
            lambda it: it.verify != "none" and not it.ca and "no ca",
            "ca, with the CAs of clients' certificates",
        ),
        Rule(
            ("user_from_cert", "verify"),
            lambda it: it.user_from_cert and it.verify == "none",
            '"optional" or "required": only a certificate that was verified names a user',
        ),
    )


class NodeTlsConfig(Record, frozen=True, kw_only=True):
    """TLS to the nodes whose addresses begin with rediss://."""

    ca: Annotated[text.CaPath | None, "PEM: the CAs of the nodes' certificates; none: the system's"] = None
    cert: Annotated[text.PemPath | None, "PEM: the certificate that we show"] = None
    key: Annotated[text.KeyPath | None, "PEM: its private key"] = None
    key_password_env: Annotated[text.KeyVariable | None, KEY_ENV] = None
    key_password_file: Annotated[text.KeyFilePath | None, KEY_FILE] = None
    verify: Annotated[
        Literal["full", "ca", "none"], "of nodes' certificates: CA and name; the CA alone; nothing"
    ] = "full"
    server_name: Annotated[
        text.ServerName | None,
        "the name that is asked for and must be in the certificate; none: the address's host",
    ] = None
    minimum: Annotated[Literal["1.2", "1.3"], "the oldest version of TLS that is spoken"] = "1.2"
    ciphers: Annotated[text.Ciphers | None, "for TLS 1.2, as OpenSSL lists them; none: Python's choice"] = (
        None
    )

    rules: ClassVar[tuple[Rule, ...]] = TlsConfig.rules[:2]
