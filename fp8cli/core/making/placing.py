"""Where an output goes: a folder beside which it grows, or an address to which it is sent from there."""

from dataclasses import replace
from pathlib import Path

from fp8cli.core.delivering.ordering import DeliveryOptions, DeliveryOrder, check_destination, order_delivery
from fp8cli.errors import UsageError
from fp8cli.formats.addresses import HUB
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.sources import Elsewhere
from fp8cli.formats.staging import check_output


def settle_output(
    options: DeliveryOptions, out: Path | None, place: LocalFolder | Elsewhere, default: str, *, overwrite: bool
) -> tuple[Path, DeliveryOrder | None]:
    """Return where the output grows, and where it is sent. Raises UsageError for a place that holds something.

    out: a folder, if that is known; default: the name of the output.
    """
    out, delivery = order_delivery(options if out is None else replace(options, out=str(out)), default)
    if delivery is None or delivery.keep:
        check_output(out, overwrite=overwrite, source=place.path if isinstance(place, LocalFolder) else None)
    if delivery is not None:
        address = delivery.address
        if isinstance(place, HubRepo) and (address.scheme, address.path) == (HUB, place.repo_id):
            message = f"the output `{address.text}` would replace its own source"
            raise UsageError(message, hint="choose another name for it")
        check_destination(delivery, out=out, overwrite=overwrite)
    return out, delivery
