"""The seams of mergekit that this package stands on, by name, and the check of each.

mergekit has no plugin interface for what LiNeS needs, so a release may move any of
these. The check runs when a mergekit module is extended; ``tests/host/test_seams.py`` runs it
over all of them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

from mergekit_lines.errors import LinesError

MERGEKIT = SpecifierSet(">=0.1.5,<0.2")


@dataclass(frozen=True)
class Seam:
    """A name in a mergekit module: its parameters, or its fields if it is a model class."""

    module: str
    name: str
    parameters: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


SEAMS = (
    Seam("mergekit.merge", "run_merge", ("merge_config", "out_path", "options", "config_source")),
    Seam("mergekit.merge", "MergePlanner"),
    Seam("mergekit.merge", "get_architecture_info", ("config", "options")),
    Seam("mergekit.merge", "_model_out_config", ("config", "arch_info", "trust_remote_code")),
    Seam("mergekit.merge", "_get_donor_model", ("merge_config", "options")),
    Seam("mergekit.merge", "_set_chat_template", ("tokenizer", "merge_config")),
    Seam(
        "mergekit.merge",
        "_update_config_vocab",
        ("config", "arch_info", "tokenizer", "pad_to_multiple_of"),
    ),
    Seam("mergekit.plan", "MergePlanner", ("config", "arch_info", "options", "out_model_config")),
    Seam(
        "mergekit.plan",
        "MergePlanner.plan_tensor",
        ("self", "weight", "weights_in", "models", "cfg_reader"),
    ),
    Seam("mergekit.plan", "MergePlanner.plan_module", ("self", "module_name", "definition")),
    Seam("mergekit.plan", "MergePlanner.plan_to_disk", ("self", "out_path")),
    Seam("mergekit.plan", "MergePlanner.plan_in_memory", ("self",)),
    Seam("mergekit.plan", "MergePlanner._plan", ("self",)),
    Seam("mergekit.plan", "MergePlanner.normalize_config", ("self",)),
    Seam("mergekit.merge_methods", "registered_methods"),
    Seam("mergekit.merge_methods.dtype", "align_dtype", ("group", "dtype")),
    Seam("mergekit.merge_methods.registry", "register", ("method",)),
    Seam("mergekit.merge_methods.registry", "get", ("name",)),
    Seam("mergekit.merge_methods.registry", "registered_methods"),
    Seam("mergekit.merge_methods.registry", "passthrough_merge_method"),
    Seam(
        "mergekit.merge_methods.base",
        "MergeMethod._execute",
        ("self", "groups", "parameters", "options", "input_dtypes", "out_dtype"),
    ),
    Seam(
        "mergekit.merge_methods.base",
        "MergeMethod._execute_resolved",
        ("self", "groups", "parameters", "dtype", "out_dtype", "batch_options"),
    ),
    Seam(
        "mergekit.merge_methods.base",
        "MergeMethod._bind_group_parameters",
        ("self", "group", "supplied", "group_index", "group_count"),
    ),
    Seam("mergekit.merge_methods.base", "GroupMergeMethod.merge_group", ("self", "group")),
    Seam("mergekit.merge_methods.base", "TensorMetadata", fields=("name", "vocabulary_axis")),
    Seam("mergekit.merge_methods.base", "TensorMetadata.from_weight_info", ("weight",)),
    Seam("mergekit.merge_methods.base", "PerGroupValues", ("values",)),
    Seam("mergekit.merge_methods.base", "TensorGroup.validate_tensors", ("self",)),
    Seam(
        "mergekit.merge_methods.base",
        "TensorGroup.from_tensors",
        ("tensors", "ids", "base_index", "name"),
    ),
    Seam(
        "mergekit.merge_methods.base",
        "MergeMethodSpec",
        ("name", "parameters", "contract", "optional_tensor_policy", "uses_accelerator"),
    ),
    Seam(
        "mergekit.merge_methods.base",
        "ParameterSpec",
        ("name", "value_type", "scope", "default", "description"),
    ),
    Seam("mergekit.merge_methods.base", "ParameterSpec.validate", ("self", "value")),
    Seam(
        "mergekit.merge_methods.base",
        "InputContract",
        ("base", "min_inputs", "max_inputs", "min_non_base", "max_non_base"),
    ),
    Seam("mergekit.merge_methods.base", "BasePolicy.FORBIDDEN"),
    Seam("mergekit.merge_methods.base", "BasePolicy.IGNORED"),
    Seam("mergekit.merge_methods.base", "BasePolicy.OPTIONAL"),
    Seam("mergekit.merge_methods.base", "BasePolicy.REQUIRED"),
    Seam("mergekit.merge_methods.base", "BatchOptions"),
    Seam("mergekit.merge_methods.base", "ParameterScope.INPUT"),
    Seam("mergekit.merge_methods.base", "ParameterScope.NON_BASE"),
    Seam("mergekit.merge_methods.base", "ParameterScope.SHARED"),
    Seam("mergekit.merge_methods.base", "ParameterSpec.required"),
    Seam("mergekit.merge_methods.base", "PerInputValues", ("items",)),
    Seam("mergekit.merge_methods.base", "TensorGroup", ("entries", "metadata")),
    Seam("mergekit.merge_methods.base", "TensorGroup.base"),
    Seam("mergekit.merge_methods.base", "TensorGroup.non_base"),
    Seam("mergekit.merge_methods.base", "TensorEntry", ("id", "tensor", "is_base")),
    Seam(
        "mergekit.merge_methods.task_adapter",
        "ExecuteMergeMethodTask",
        fields=(
            "method_name",
            "gather_tensors",
            "model_order",
            "base_model",
            "output_weight",
            "parameters",
            "input_parameters",
            "dtype",
            "out_dtype",
        ),
    ),
    Seam(
        "mergekit.merge_methods.task_adapter", "ExecuteMergeMethodTask.execute", ("self", "tensors")
    ),
    Seam(
        "mergekit.parameter_resolver",
        "resolve_parameter",
        ("parameter", "settings", "tensor_name", "t", "model"),
    ),
    Seam(
        "mergekit.config",
        "MergeConfiguration",
        fields=(
            "merge_method",
            "base_model",
            "models",
            "slices",
            "modules",
            "parameters",
            "dtype",
            "out_dtype",
            "tokenizer",
            "tokenizer_source",
            "chat_template",
        ),
    ),
    Seam("mergekit.config", "ConditionalParameter", fields=("value", "filter")),
    Seam("mergekit.config", "MergeConfiguration.to_yaml", ("self",)),
    Seam("mergekit.config", "InputModelDefinition", fields=("model", "parameters")),
    Seam("mergekit.config", "InputSliceDefinition", fields=("model", "parameters")),
    Seam(
        "mergekit.config", "OutputSliceDefinition", fields=("sources", "base_model", "parameters")
    ),
    Seam("mergekit.config", "OutputModuleDefinition", fields=("slices", "models", "parameters")),
    Seam("mergekit.config", "ConfigReader", fields=("t",)),
    Seam("mergekit.config", "ConfigReader.parameter_sources", ("self", "model")),
    Seam("mergekit.common", "ModelPath", fields=("path", "revision")),
    Seam("mergekit.common", "ModelReference", fields=("model", "lora", "override_architecture")),
    Seam("mergekit.common", "ModelReference.config", ("self", "trust_remote_code")),
    Seam("mergekit.common", "ModelReference.parse", ("value",)),
    Seam("mergekit.common", "ImmutableMap", ("data",)),
    Seam("mergekit.common", "huggingface_hub"),
    Seam("mergekit.common", "dtype_from_name", ("name",)),
    Seam("mergekit.common", "get_auto_cls", ("arch_name",)),
    Seam("mergekit.common", "parse_kmb", ("value",)),
    Seam("mergekit.architecture", "WeightInfo"),
    Seam("mergekit.architecture", "ModelArchitecture", ("modules", "architectures", "model_type")),
    Seam("mergekit.architecture", "ModuleArchitecture"),
    Seam("mergekit.architecture", "ModuleDefinition", fields=("architecture",)),
    Seam("mergekit.architecture", "get_architecture_info", ("config", "options")),
    Seam("mergekit.architecture.auto", "infer_architecture_info.cache_clear"),
    Seam("mergekit.architecture.auto", "infer_vocabulary_axes", ("model",)),
    Seam("mergekit.architecture.auto", "get_model_tensor_names", ("model", "options")),
    Seam("mergekit.architecture.base", "ModelArchitecture.all_weights", ("self", "config")),
    Seam(
        "mergekit.architecture.base",
        "WeightInfo",
        fields=("name", "vocabulary_axis", "optional", "aliases", "force_dtype", "tied_names"),
    ),
    Seam("mergekit.architecture.conversion", "can_convert_checkpoint_keys"),
    Seam(
        "mergekit.io",
        "ShardedTensorIndex",
        ("base_path", "is_safetensors", "tensor_paths", "shards"),
    ),
    Seam("mergekit.io", "LazyTensorLoader", ("index", "lazy_unpickle")),
    Seam("mergekit.io.loader", "LazyPickleLoader", ("path",)),
    Seam("mergekit.io.tasks", "LoaderCache.flush_all", ("self",)),
    Seam("mergekit.io.lazy_tensor_loader", "LazyTensorLoader", fields=("index",)),
    Seam(
        "mergekit.io.lazy_tensor_loader",
        "ShardedTensorIndex",
        fields=("base_path", "is_safetensors", "tensor_paths"),
    ),
    Seam("mergekit.io.lazy_tensor_loader", "LazyTensorLoader.get_tensor", ("key",)),
    # mergekit-pytorch, whose recipe is planned once more for alpha: auto.
    Seam(
        "mergekit.scripts.merge_raw_pytorch",
        "plan_flat_merge",
        ("config", "out_path", "tensor_union", "tensor_intersection", "options"),
    ),
    Seam("mergekit.scripts.merge_raw_pytorch", "RawPyTorchMergeConfig"),
    Seam("mergekit.scripts.merge_raw_pytorch", "SimpleLoaderCache"),
    Seam("mergekit.scripts.merge_raw_pytorch", "SaveTensor", fields=("tensor_task",)),
    Seam("mergekit.scripts.merge_raw_pytorch", "TensorDictWrapper", fields=("tensors",)),
    Seam(
        "mergekit.tokenizer.embed",
        "PermutedVocabulary",
        fields=("tokenizer_task", "gather_tensors"),
    ),
    Seam("mergekit.tokenizer", "PermutedVocabulary", fields=("vocabulary_axis", "tokens")),
    Seam("mergekit.io.tasks", "LoadTensor", fields=("model", "tensor", "aliases", "optional")),
    Seam("mergekit.merge_methods.passthrough", "passthrough_merge_method"),
    Seam(
        "mergekit.merge_methods.generalized_task_arithmetic",
        "GeneralizedTaskArithmeticMerge",
        ("consensus_method", "sparsification_method", "default_normalize"),
    ),
    Seam("mergekit.io.tasks", "LoaderCache.loaders"),
    Seam("mergekit.io.tasks", "LoaderCache.setup", ("self", "options")),
    Seam("mergekit.io.tasks", "LoaderCache.get", ("self", "model")),
    Seam("mergekit.io.tasks", "GatherTensors", fields=("weight_info", "dtype", "device")),
    Seam("mergekit.graph", "Task"),
    Seam("mergekit.graph", "Executor", ("targets", "math_device", "storage_device")),
    Seam("mergekit.graph", "Executor.run", ("self", "quiet", "desc")),
    Seam(
        "mergekit.tokenizer.build",
        "BuildTokenizer",
        fields=("base_model", "referenced_models", "tokenizer_source", "add_tokens"),
    ),
    Seam("mergekit.options", "MergeOptions.apply_global_options", ("self",)),
    Seam("mergekit.scripts.multimerge", "load_config", ("config_source", "intermediate_dir")),
    Seam("mergekit.tokenizer.build", "TokenizerInfo"),
    Seam("mergekit.tokenizer.config", "TokenizerConfig", fields=("source", "pad_to_multiple_of")),
    Seam("mergekit.tokenizer.config", "TokenEmbeddingConfig", fields=("source", "force")),
    Seam(
        "mergekit.options",
        "MergeOptions",
        fields=(
            "allow_crimes",
            "unsafe_truncate_embeddings",
            "lora_merge_cache",
            "lora_merge_dtype",
            "transformers_cache",
            "device",
            "low_cpu_memory",
            "copy_tokenizer",
            "random_seed",
            "write_model_card",
            "safe_serialization",
            "out_shard_size",
            "quiet",
            "multi_gpu",
            "num_threads",
            "trust_remote_code",
            "lazy_unpickle",
        ),
    ),
)


def check_version() -> str:
    """Return mergekit's version.

    Raises:
        LinesError: it is not one this package was written for.
    """
    try:
        version = importlib.metadata.version("mergekit")
    except importlib.metadata.PackageNotFoundError:
        raise LinesError(
            "mergekit is not installed as a package: run `pip install mergekit`."
        ) from None
    if not MERGEKIT.contains(version, prereleases=True):
        raise LinesError(
            f"mergekit {version} is installed, this mergekit-lines works with mergekit "
            f"{MERGEKIT}: run `pip install 'mergekit{MERGEKIT}'` or a newer mergekit-lines."
        )
    return version


def check(*modules: str) -> None:
    """Check the version of mergekit and every seam in ``modules`` (none named: all).

    Raises:
        LinesError: the version does not fit, or a seam is gone or has another shape.
    """
    version = check_version()
    moved = [
        text
        for seam in SEAMS
        if (not modules or seam.module in modules) and (text := _difference(seam))
    ]
    if moved:
        raise LinesError(
            f"mergekit {version} is not as this mergekit-lines knows it ({'; '.join(moved)}): "
            f"install another release of one of the two."
        )


def _difference(seam: Seam) -> str | None:
    place = f"{seam.module}.{seam.name}"
    try:
        target: object = importlib.import_module(seam.module)
    except ModuleNotFoundError:
        return f"{place} is gone"
    for part in seam.name.split("."):
        if not hasattr(target, part):
            return f"{place} is gone"
        target = getattr(target, part)
        if isinstance(target, type) and target.__module__.startswith("mergekit_lines."):
            target = target.__base__  # ours has taken its place, and would hide what is gone
    if seam.fields:
        declared = getattr(target, "__annotations__", {})
        present = {*getattr(target, "model_fields", declared)}
        missing = [name for name in seam.fields if name not in present]
    elif seam.parameters:
        present = set(inspect.signature(target).parameters)  # type: ignore[arg-type]
        missing = [name for name in seam.parameters if name not in present]
    else:
        missing = []
    return f"{place} lacks {', '.join(missing)}" if missing else None
