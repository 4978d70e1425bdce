"""Certificates for tests, made by the openssl program: an authority, and what it signs."""

import ssl
import subprocess
from pathlib import Path

from servers import Raw, program

OURS = ("DNS:localhost", "IP:127.0.0.1")


class Authority:
    """A CA in a folder; `issue` gives the paths of a certificate and its key."""

    def __init__(self, folder: Path, name: str = "test CA") -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.ca, self._key = folder / "ca.pem", folder / "ca.key"
        self._openssl("req", "-x509", *self._new_key(self._key), "-subj", f"/CN={name}", "-out", self.ca)

    def _openssl(self, *args: str | Path) -> None:
        done = subprocess.run(
            [program("openssl", "openssl"), *map(str, args)], cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    @staticmethod
    def _new_key(path: Path) -> list[str | Path]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path]

    def issue(
        self, name: str, *, names: tuple[str, ...] = OURS, days: int = 30, password: str = "", file: str = ""
    ) -> tuple[Path, Path]:
        """days: below 0 it has expired. password: of the key. file: of both, without an ending."""
        cert, key = (self.folder / f"{file or name}.{end}" for end in ("pem", "key"))
        request, extras = self.folder / "request", self.folder / "extras"
        extras.write_text(f"subjectAltName={','.join(names)}\n" if names else "")
        self._openssl("req", *self._new_key(key), "-subj", f"/CN={name}", "-out", request)
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._key, "-CAcreateserial",
            "-days", str(days), "-extfile", extras, "-out", cert,
        )  # fmt: skip
        if password:
            self._openssl("ec", "-in", key, "-out", key, "-aes256", "-passout", f"pass:{password}")
        return cert, key

    def context(self, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
        """A client's, which believes this CA."""
        made = ssl.create_default_context(cafile=str(self.ca))
        if cert:
            made.load_cert_chain(cert, key)
        return made


class RawTls(Raw):
    """A connection that sends and receives the bytes inside TLS. begin: bytes before the handshake."""

    def __init__(
        self,
        where: int,
        context: ssl.SSLContext,
        name: str = "localhost",
        timeout: float = 10.0,
        begin: bytes = b"",
    ) -> None:
        super().__init__(where, timeout)
        if begin:
            self.socket.sendall(begin)
        self.socket: ssl.SSLSocket = context.wrap_socket(self.socket, server_hostname=name)
