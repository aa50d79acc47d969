"""Model directories made of checkpoints that other toolkits wrote."""

from speechattn.importing.importer import Source, import_checkpoint

__all__ = ["Source", "import_checkpoint"]
