"""mergekit merge methods: thin objects around the kernels, registered by name.

``lines`` and ``lines_postprocess`` are the recipe's words. The planner resolves ``lines``
to one method per wrapped method (``lines[ties]``, …), registered on demand, because
defaults, parameter scopes, contracts and optional-tensor policies hang on the name.
"""

# Before the modules of this package: mergekit's registry asks for them while it is imported,
# and they must not be half imported at that time.
import mergekit.merge_methods  # noqa: F401
