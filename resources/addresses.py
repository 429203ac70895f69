r"""Parses URLs, in one way for every client, link, redirect and check.

Two parsers may see different hosts in one URL: in `https://other\@allowed/x`, urllib.parse finds `allowed` and urllib3
connects to `other`. Such ambiguous URLs are refused here, and no other module parses URLs (a lint rule forbids it).
`resources.http` checks each request again as it is sent.
"""

import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from resources.errors import IntegrityError

_MAX_LENGTH = 8192
"""Signed addresses of S3 have some 2,000 characters, and servers take request lines of 8 kB."""
_AUTHORITY = re.compile(r"(?P<host>[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?", re.I | re.ASCII)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.I | re.ASCII)
_LABEL = re.compile(r"[a-z0-9_-]{1,63}", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_PORTS = {"https": 443, "http": 80}
_MAX_SHOWN = 200
_MAX_ADDRESSES = 32


class AddressError(IntegrityError, ValueError):
    """A URL is invalid or not allowed. The message does not repeat its login or query."""


@dataclass(frozen=True)
class Address:
    """An http(s) URL without a login. `url` is as requests sends it; `host` is in lower case, unbracketed."""

    url: str
    scheme: str
    host: str
    port: int
    path: str
    query: str

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def has_usual_port(self) -> bool:
        return self.port == _PORTS[self.scheme]

    @property
    def place(self) -> str:
        """Its host, with its port if that is unusual or on this machine; usable as an entry of a list of hosts."""
        if self.has_usual_port and not self.is_loopback:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def is_one_of(self, hosts: Collection[str]) -> bool:
        """Whether it is on one of the hosts. An entry with a port (`host:8443`) matches only that port; one without
        matches the usual port of https or http, and any port of this machine.
        """
        return any(self.host == host and self._has(port) for host, port in map(_host_and_port, hosts))

    def is_at(self, hosts: Collection[str]) -> bool:
        """Whether it is on one of the hosts or a subdomain, with ports as in `is_one_of`."""
        return any(
            (self.host == host or self.host.endswith(f".{host}")) and self._has(port)
            for host, port in map(_host_and_port, filter(None, hosts))
        )

    def _has(self, port: int | None) -> bool:
        return self.is_loopback or self.has_usual_port if port is None else self.port == port


def read(url: str, plain_http: bool = False) -> Address:
    """Parse a URL. Raises AddressError if it is invalid or ambiguous.

    It must be https, or http to this machine; with `plain_http`, http to any host. A host is an ASCII name (xn--… for
    others), or an IP address in its usual form.
    """
    # here and below: messages of errors show addresses, also where nothing is asked of a network
    import requests

    address = _parsed(url)
    prepared = requests.PreparedRequest()
    try:
        prepared.prepare_url(url, None)
    except ValueError:
        raise _refused(url, "no request can be made of it") from None
    sent = _parsed(prepared.url or "")
    if _origin(sent) != _origin(address):
        raise _refused(url, "its host is read in two ways")
    if sent.scheme != "https" and not plain_http and not sent.is_loopback:
        raise _refused(url, "it is not https, so that others could read and change what is sent")
    return sent


def configured(url: str, plain_http: bool = False) -> Address:
    """The URL of a server from the configuration. Raises AddressError like `read`, and for a URL with a query, because
    it may have a key and messages repeat the URL.
    """
    address = read(url, plain_http)
    if "?" in url or "#" in url:
        raise _refused(url, "it has a query, where a key could be that every message would repeat")
    return address


def require_local(path: str) -> str:
    """A configured local path. Raises AddressError for a URL, whose login messages would repeat."""
    if is_url(path):
        raise _refused(path, "a local path is needed")
    return path


def require_local_or_s3(path: str) -> str:
    """A configured file or folder: a local path, a file:// URL, or s3://bucket/key without a login.

    Raises AddressError for all else, which fsspec would open: other protocols, some of which ask hosts without any of
    the checks of `read`, and chains of them ("zip::a.zip").
    """
    scheme = _SCHEME.match(path)
    if scheme and not path.startswith(("s3://", "file://")):
        raise _refused(
            path, f"not by {scheme[0]}, but as a local path (./… for a name like this) or as s3://"
        )
    if is_url(path) and "@" in path.split("://", 1)[1].split("/")[0]:
        raise _refused(path, "it has a user name")
    return path


def join(base: str, link: str) -> Address:
    """The target of a link on the page `base`. Raises AddressError if it is invalid."""
    # urljoin would drop some control characters
    _require_plain_text(link)
    try:
        return read(urljoin(base, link), plain_http=True)
    except AddressError:
        raise
    except ValueError:
        raise _refused(link, "it cannot be read") from None


def is_url(text: str) -> bool:
    """Whether a text is meant as a URL, and not as a path."""
    return "://" in text


def is_loopback(host: str) -> bool:
    """Whether a host names this machine: localhost, 127.0.0.0/8, ::1."""
    name = host.lower().rstrip(".")
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def same_site(url: str, target: str) -> bool:
    """Whether `target` is on the host of `url` or a subdomain, on the same port, and not http if `url` is https."""
    try:
        old, new = read(url, plain_http=True), read(target, plain_http=True)
    except AddressError:
        return False
    below = new.host == old.host or new.host.endswith(f".{old.host}")
    return below and _as_safe(old, new) and _on_one_port(old, new)


def leads_to(url: str, hosts: Collection[str]) -> bool:
    """Whether a text is a URL, https or of this machine, on one of the hosts or a subdomain."""
    try:
        return read(url).is_at(hosts)
    except AddressError:
        return False


def require_host(url: str, hosts: Collection[str]) -> Address:
    """Parse a URL of one of the hosts. Raises AddressError if it is invalid, IntegrityError if it has another host."""
    address = read(url)
    if not address.is_one_of(hosts):
        raise IntegrityError(
            f"{shown(url)} leads to {address.scheme}://{address.place}, which is not among the configured hosts "
            f"({', '.join(sorted(hosts))})"
        )
    return address


def safe_elsewhere(url: str, target: str) -> bool:
    """Whether a redirect from `url` to `target` on any host may be followed, for content that is verified.

    It must be https or stay on the site of `url` without a downgrade to http, and must not lead further into the
    user's own network: from a public address never to a private one, and to loopback only from loopback. All addresses
    of a name count, and a name without any is refused, unless a proxy resolves it. A name that resolves differently a
    moment later does no harm, as no host of an inner network has a certificate for it.
    """
    try:
        old, new = read(url, plain_http=True), read(target, plain_http=True)
    except AddressError:
        return False
    if new.host == old.host and _on_one_port(old, new):
        return _as_safe(old, new)
    # a source that cannot be resolved has no more rights than a public one
    source, destination = min(_depths(url)) % _NOWHERE, max(_depths(target))
    local = source == destination == _LOOPBACK and new.scheme == old.scheme == "http" and new.port == old.port
    allowed = new.scheme == "https" or local or same_site(url, target)
    return allowed and destination <= source


def _as_safe(old: Address, new: Address) -> bool:
    return new.scheme == "https" or old.scheme == "http"


def _on_one_port(old: Address, new: Address) -> bool:
    return new.port == old.port or (old.has_usual_port and new.has_usual_port)


def _host_and_port(entry: str) -> tuple[str, int | None]:
    """Host and port of an entry of a list of hosts, such as a.example, a.example:8443, ::1 and [::1]:8443."""
    host, _, port = entry.lower().rpartition(":")
    if host and (host.startswith("[") or ":" not in host) and port.isascii() and port.isdecimal():
        return host.strip("[]"), int(port[:6])
    return entry.lower().strip("[]"), None


_PUBLIC, _PRIVATE, _LOOPBACK, _NOWHERE = range(4)


def _depths(url: str) -> set[int]:
    """How deep in the user's own network a host's addresses are; _NOWHERE for those that no redirect may lead to."""
    address = read(url, plain_http=True)
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        import requests

        proxied = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
        return {_PUBLIC if proxied else _NOWHERE}
    if len(found) > _MAX_ADDRESSES:
        # a connection would try them one after another
        return {_NOWHERE}
    return {_depth_of(ipaddress.ip_address(place[0])) for *_, place in found}


def _depth_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return _depth_of(address.ipv4_mapped)
        if address.sixtofour or address.is_site_local or address in _NAT64:
            return _NOWHERE
    if address.is_loopback:
        return _LOOPBACK
    if address.is_multicast or address.is_link_local or address.is_unspecified:
        return _NOWHERE
    return _PUBLIC if address.is_global else _PRIVATE if address.is_private else _NOWHERE


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def shown(url: str) -> str:
    """A URL for a message: without its login and query, printable, and shortened."""
    before, login, rest = url.rpartition("@")
    scheme = re.match(r"[a-z]{1,9}://", before, re.I) if login else None
    text = re.split(r"[?#]", rest)[0]
    text = f"{scheme[0] if scheme else ''}…@{text}" if login else text
    if len(text) > _MAX_SHOWN:
        text = f"{text[:_MAX_SHOWN]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _parsed(url: str) -> Address:
    """Parse a URL without preparing a request. Raises AddressError."""
    from urllib3.util import parse_url

    _require_plain_text(url)
    try:
        one, other = urlsplit(url), parse_url(url)
        ports = one.port, other.port
    except ValueError:
        raise _refused(url, "it cannot be read") from None
    if one.scheme not in _PORTS:
        raise _refused(url, "it is neither https nor http")
    if "@" in one.netloc:
        raise _refused(url, "it has a user name")
    authority = _AUTHORITY.fullmatch(one.netloc)
    host = authority["host"].lower() if authority else ""
    if not authority or not _is_host(host):
        raise _refused(
            url, "its host is neither a name of a-z, 0-9, - and _ nor an IP address in its usual form"
        )
    if 0 in ports or ports[0] != ports[1]:
        raise _refused(url, "its port is none")
    if (one.scheme, host, None) != (other.scheme, (other.host or "").lower(), other.auth):
        raise _refused(url, "its host is read in two ways")
    port = one.port or _PORTS[one.scheme]
    return Address(url, one.scheme, host.strip("[]"), port, one.path, one.query)


def _origin(address: Address) -> tuple[str, str, int]:
    return address.scheme, address.host, address.port


def _is_host(host: str) -> bool:
    if host.startswith("["):
        return _is_ip(host.strip("[]"), ipaddress.IPv6Address)
    labels = host.split(".")
    # the system resolves 0x7f.1, 127.1 and 2130706433 to 127.0.0.1
    if _NUMBER.fullmatch(labels[-1]):
        return _is_ip(host, ipaddress.IPv4Address)
    return all(map(_LABEL.fullmatch, labels))


def _is_ip(text: str, kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _require_plain_text(url: str) -> None:
    """Raise AddressError for characters that parsers drop or that may end a host, and for too long a text."""
    if len(url) > _MAX_LENGTH:
        raise _refused(url, f"it has {len(url):,} characters")
    if "\\" in url:
        raise _refused(url, "it has a backslash")
    if " " in url or not url.isprintable():
        raise _refused(url, "it has white space or control characters")


def _refused(url: str, why: str) -> AddressError:
    return AddressError(f"'{shown(url)}' is not an address that is asked: {why}")
