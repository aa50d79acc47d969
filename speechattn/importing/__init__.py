"""Model directories out of checkpoints that other toolkits wrote."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechattn.importing.importer import Source, import_checkpoint

__all__ = ["Source", "import_checkpoint"]


def __getattr__(name: str) -> Any:
    # Late, since `espnet`, beside it, is also what the decoders' tests compare with.
    if name in __all__:
        from speechattn.importing import importer

        return getattr(importer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
