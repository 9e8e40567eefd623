"""Who sends a request. Imports no models, so that the page's server may start before them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv6Address, ip_address


@dataclass(frozen=True)
class Client:
    """The network address and the page session of who sends a request, each "" where it is unknown.

    The session's name is the client's own choice, its address is not: limits count by network, and the scheduler
    gives turns by network first and by session within one.
    """

    address: str = ""
    session: str = ""

    @cached_property  # the scheduler asks for each waiting row in every step
    def is_local(self) -> bool:
        """Whether the request comes from this machine or straight from a program that uses the engine."""
        try:
            return not self.address or ip_address(self.address).is_loopback
        except ValueError:
            return False

    @cached_property
    def network(self) -> str:
        """What one person may own, by one name: an IPv4 address, or the first half of an IPv6 one."""
        try:
            ip = ip_address(self.address)
        except ValueError:
            return self.address[:100]
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is None:
            return str(ip_address(int(ip) >> 64 << 64))
        return str(getattr(ip, "ipv4_mapped", None) or ip)
