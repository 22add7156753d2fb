"""In which setting were runs made? A preset, and in what a Dataset differs from it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Setting:
    """The sizes, the model and the axes of a Dataset, named by the nearest preset.

    Args:
      preset: name of the standard sizes and numbers, such as "paper_like" or "depth"; "custom" if there is none;
        of a system that is not jaxsign's, its name.
      values: values of the number that the preset leaves open, such as ("1",) of "depth".
      model: in what the model differs, such as ("gaussian kernel", "residual 1", "w_v alone trained").
      changes: other numbers that differ, such as ("n=21",), or what is compared, such as ("optimizers",).
      swept: axes with several points.

    Examples:
      >>> str(Setting("disjoint", model=("gaussian kernel", "residual 1"), changes=("n=21",)))
      'gaussian kernel with residual 1, disjoint, n=21'
      >>> str(Setting("depth", values=("1",), swept=("snr", "n")))
      'depth 1 over snr, n'
    """

    preset: str
    values: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    swept: tuple[str, ...] = ()

    def __str__(self) -> str:
        over = f" over {', '.join(self.swept)}" if self.swept else ""
        return ", ".join([*([self._model] if self.model else []), self._sizes, *self.changes]) + over

    @property
    def kind(self) -> str:
        """What a sentence about many settings names: the model that differs, else the preset; "" of a sweep."""
        return "" if self.swept else self._model or self._sizes

    @property
    def is_variation(self) -> bool:
        """Whether it differs from the preset, so that only some claims are asked of it."""
        return bool(self.model or self.changes or self.swept) or len(self.values) > 1

    @property
    def _model(self) -> str:
        return " with ".join(self.model)

    @property
    def _sizes(self) -> str:
        return " ".join(filter(None, (self.preset, ", ".join(self.values))))
