"""Which network addresses are the public internet's: the rest are nobody's business but this machine's.

Refused: private, loopback, link-local (cloud metadata among them), carrier-grade NAT, multicast,
reserved and unspecified ones, also where they hide inside IPv6: mapped, 6to4, Teredo, NAT64.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_ALSO_REFUSED = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # public by its number, but answered by the machine's host (Azure)
            "192.0.0.0/24",  # these are special too, and older Pythons call some of them global
            "192.88.99.0/24",
            "2001::/23",
            "5f00::/16",
            "fec0::/10",
        ),
    )
)


def is_public(address: Address) -> bool:
    """Whether a connection may go there."""
    inner = _inside(address)
    if inner is not None:
        return is_public(inner)
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _ALSO_REFUSED)
    )


def _inside(address: Address) -> Address | None:
    """The IPv4 address that an IPv6 one really leads to, if it does."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in _NAT64) or int(address) >> 32 == 0:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None
