"""Certificates for tests with TLS, made by openssl: an authority, a server and a client of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.servers import program


class Certificates:
    """Files in one directory: ca.pem, server.pem, server.key, client.pem, client.key."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._openssl = program("openssl", "openssl")
        self._run(
            "req", "-x509", "-subj", "/CN=an authority", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem"
        )
        self._issue("server", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1")
        self._issue("client", "subjectAltName=DNS:client")
        self._run("rsa", "-aes256", "-passout", "pass:Sesame", "-in", "client.key", "-out", "locked.key")

    def __getitem__(self, name: str) -> str:
        return str(self._directory / name)

    def server_config(self, port: int, *, clients: str = "no") -> dict[str, str]:
        """Options of a server that listens with TLS. `clients`: whether they need a certificate."""
        return {
            "bind": "127.0.0.1 -::1",
            "tls-port": str(port),
            "tls-cert-file": self["server.pem"],
            "tls-key-file": self["server.key"],
            "tls-ca-cert-file": self["ca.pem"],
            "tls-auth-clients": clients,
        }

    def _issue(self, name: str, extension: str) -> None:
        (self._directory / f"{name}.ext").write_text(extension)
        self._run("req", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        self._run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2",
                  "-CAcreateserial", "-extfile", f"{name}.ext", "-out", f"{name}.pem")  # fmt: skip

    def _run(self, *arguments: str) -> None:
        more = ["-newkey", "rsa:2048", "-nodes"] if arguments[0] == "req" else []
        subprocess.run(
            [self._openssl, *arguments, *more], cwd=self._directory, check=True, capture_output=True
        )
