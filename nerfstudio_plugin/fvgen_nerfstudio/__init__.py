"""nerfstudio adapter: the method `fvgen-splat`. Imports stay light; see `config`."""
