"""What a delivery tells whoever waits for it, once there is nothing left to do but to send."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SendingBegins:
    """Told once, before any BytesSent: what those will add up to."""

    bytes_left: int


@dataclass(frozen=True, kw_only=True)
class BytesSent:
    """So many more bytes are there. Never told by two threads at once."""

    count: int


DeliveryEvent = SendingBegins | BytesSent
