"""The Host header of a service without keys: a web page can point a name of its own at this machine (DNS rebinding)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from service import errors

HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+))(?::[0-9]{0,5})?", re.ASCII)


def host_name(text: str) -> str | None:
    """The name or address of a Host header, without its port, in one spelling. None: it is no host."""
    match = HOST.fullmatch(text)
    if match is None:
        return None
    name = (match[1] or match[2]).lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def is_loopback(name: str) -> bool:
    """Whether a name or an address can only mean this machine."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


class Hosts:
    """The names that are served: loopback, the address that is bound, and those of a setting."""

    def __init__(self, bound: str, allowed: Iterable[str]) -> None:
        """SettingError for what is no name."""
        allowed = set(allowed)
        self._any = "*" in allowed
        names = {given: _setting_name(given) for given in allowed - {"*"}}
        for given, name in names.items():
            if name is None:
                raise errors.SettingError(f"AFT_ALLOWED_HOSTS: {errors.clip(given)!r} is no name of a host, nor `*`")
        # what stands for every address of the machine is the name of none
        self._names = {*names.values(), _setting_name(bound)} - {None, "0.0.0.0", "::"}

    def refusal(self, given: list[str]) -> errors.ApiError | None:
        """Why a request with these Host headers is refused, or None."""
        if len(given) != 1:
            return errors.one_host()
        name = host_name(given[0].strip())
        if self._any or (name is not None and (is_loopback(name) or name in self._names)):
            return None
        return errors.forbidden_host(given[0])


def _setting_name(given: str) -> str | None:
    return host_name(given) or host_name(f"[{given}]")  # in a setting, brackets are not needed
