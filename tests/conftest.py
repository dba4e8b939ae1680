"""Every test run checks the shapes in the package's signatures: jaxtyping's import hook, with beartype."""

from jaxtyping import install_import_hook

install_import_hook("minimodel", "beartype.beartype")
