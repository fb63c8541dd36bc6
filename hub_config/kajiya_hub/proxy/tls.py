"""Certificates: what the command line names, as SSL contexts."""

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class Files:
    """Key, certificate and authority of one side, and whether the peer must show a certificate."""

    key: Path | None = None
    cert: Path | None = None
    ca: Path | None = None
    ask: bool = False
    insist: bool = False
    ciphers: str | None = None


def server(files: Files) -> ssl.SSLContext | None:
    """The context to listen with, or None for plain HTTP. OSError or ssl.SSLError if a file can't be used."""
    if files.cert is None and files.key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.cert or files.key or "", files.key)
    if files.ciphers:
        context.set_ciphers(files.ciphers)
    if files.ask:
        context.verify_mode = ssl.CERT_REQUIRED if files.insist else ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    return context


def client(files: Files, insecure: bool) -> ssl.SSLContext:
    """The context for https targets."""
    context = ssl.create_default_context(cafile=files.ca)
    if files.cert is not None:
        context.load_cert_chain(files.cert, files.key)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
