"""What the quantization config of a compressed-tensors checkpoint says of how its weights are stored."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from interp.documents import checked
from interp.errors import InputError
from interp.formats.packed import MAX_GROUP_SIZE, OF_ACTIVATIONS, PackedModule, activation_warning

ACTIVATION_PARTS = {
    f"{side}_{part}": OF_ACTIVATIONS for side in ("input", "output") for part in ("scale", "zero_point", "global_scale")
}
"""What a module may hold of its activations."""
Size = Annotated[int, Field(ge=1, le=MAX_GROUP_SIZE)]


class Scheme(BaseModel, extra="allow", strict=True):
    """The keys of a scheme's `weights` that decide how a weight is stored."""

    num_bits: int = Field(ge=1, le=8)
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: str | None = None
    group_size: int | None = Field(default=None, ge=-1, le=MAX_GROUP_SIZE)
    actorder: bool | str | None = None
    block_structure: list[Size] | None = Field(default=None, min_length=2, max_length=2)

    def groups(self, n_in: int) -> int:
        """Groups of `n_in` inputs: one for each channel or tensor, or as many as the group size makes."""
        return ceil(n_in / self.group_size) if self.group_size and self.group_size > 0 else 1

    @property
    def reordered(self) -> bool:
        """Inputs are grouped in the order of their activations, which `weight_g_idx` holds."""
        return self.actorder is True or self.actorder in ("group", "dynamic")


def schemes_of(module: PackedModule, kind: Literal["int", "float"]) -> list[Scheme]:
    """How weights are quantized, by the quantization config; none where it has none.

    Args:
        module: any linear of the checkpoint.
        kind: of number that the linear's weights are.

    Raises:
        InputError: a scheme that is none, or schemes of the other kind alone.
    """
    where = f"The quantization config of {module.shards.directory}, config_groups"
    stated = [checked(Scheme, group["weights"], where) for group in _config_groups(module) if group.get("weights")]
    schemes = [scheme for scheme in stated if scheme.type == kind]
    if stated and not schemes:
        raise InputError(
            f"{where}: type is {stated[0].type!r}, and the weight of {module.name} is stored as {kind}",
            f"a scheme whose weights are of the type {kind!r}",
            "The config.json and the weights do not belong together",
        )
    return schemes


def _config_groups(module: PackedModule) -> list[dict[str, Any]]:
    """The groups of modules of the quantization config; none where it has none."""
    groups = module.settings.get("config_groups") or {}
    if isinstance(groups, dict):
        schemes = list(groups.values())
        if all(isinstance(g, dict) and isinstance(g.get("weights") or {}, dict) for g in schemes):
            return schemes
    raise InputError(
        f"The quantization config of {module.shards.directory} gives config_groups as {groups!r}",
        "an object of schemes, each with its 'weights'",
        "Restore the config that the quantizer wrote",
    )


def _section(module: PackedModule, key: str) -> dict[str, Any]:
    """An object of the quantization config, empty where it has none."""
    section = module.settings.get(key) or {}
    if not isinstance(section, dict):
        raise module.unusable(key, "an object")
    return section


def refuse_other_layouts(module: PackedModule, *layouts: str) -> None:
    """Raise an InputError where the config says that the module is stored in other ways.

    Args:
        module: any linear of the checkpoint.
        layouts: what the config's `format` may be, as the tensors are; "mixed-precision" stands for any.
    """
    transforms = _section(module, "transform_config")
    sparsity = _section(module, "sparsity_config").get("format", "dense")
    for what, setting, expected in (
        ("format", module.settings.get("format", layouts[0]), (*layouts, "mixed-precision")),
        ("sparsity format", sparsity, ("dense",)),
        ("transforms", "some" if transforms.get("config_groups") else "none", ("none",)),
    ):
        if setting not in expected:
            raise InputError(
                f"{module.shards.directory} is compressed-tensors with the {what} {setting!r}, and {module.name} is "
                f"stored as {layouts[0]}",
                " or ".join(expected),
                "Give a checkpoint in a layout that docs/formats.md lists",
            )


def activation_warnings(module: PackedModule) -> list[str]:
    """One warning where the engine rounds activations or what it keeps of them; none where it rounds weights alone."""
    rounded = ("input_activations", "output_activations")
    some = any(group.get(key) for group in _config_groups(module) for key in rounded)
    cached = bool(module.settings.get("kv_cache_scheme"))
    return [activation_warning(module.shards.directory)] if some or cached else []
