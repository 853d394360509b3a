"""What calling a thing does beside giving a value, as far as its name tells.

Data and small questions only.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BUILTINS = _words(
    "abs all any ascii bin bool bytes callable chr complex dict divmod enumerate filter float "
    "format frozenset "
    "getattr hasattr hash hex id int isinstance issubclass len list map max min oct ord pow "
    "print range repr "
    "reversed round set slice sorted str sum super tuple type zip object property staticmethod "
    "classmethod"
)
ERRORS = ("Error", "Exception", "Warning")
PURE_PACKAGES = _words(
    "math cmath statistics itertools functools operator collections re string textwrap typing "
    "dataclasses copy enum "
    "fractions decimal numbers time datetime json torch numpy scipy sklearn einops "
    "torchmetrics pandas"
)
PURE_PREFIXES = (
    "lightning.pytorch.utilities.",
    "pytorch_lightning.utilities.",
    "os.path.",
    "torch.no_grad",
)
IMPURE_PREFIXES = (
    "torch.optim",
    "torch.distributed",
    "torch.utils.data",
    "torch.multiprocessing",
    "torch.nn.init",
    "torch.hub",
    "torch.backends",
    "torch.distributions",
)
# Of torch.nn, what has neither parameters nor draws; a layer draws its weights when it is made.
DRAWLESS_LAYERS = (
    "Loss",
    "Similarity",
    "Softmax",
    "Distance",
    "ReLU",
    "Sigmoid",
    "Tanh",
    "Flatten",
    "Identity",
)
DRAWS = _words(
    "rand randn randint randperm rand_like randn_like randint_like bernoulli multinomial "
    "normal poisson dropout "
    "dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout rrelu "
    "gumbel_softmax "
    "fractional_max_pool2d random uniform integers choice choices shuffle permutation permuted "
    "sample rsample "
    "standard_normal randrange gauss random_sample randbytes getrandbits train_test_split"
)
DRAWS_FROM_TRAINING = (
    "draws from a generator that the training draws from; use a generator of its own"
)
# Generators of one's own, from a seed of one's own, disturb nobody.
GENERATORS = _words(
    "numpy.random.default_rng numpy.random.RandomState numpy.random.Generator random.Random "
    "torch.Generator"
)
CHANGES = _words(
    "append appendleft extend insert remove pop popleft popitem clear update add setdefault "
    "sort reverse discard "
    "step zero_grad backward train eval load_state_dict register_buffer register_parameter "
    "register_module "
    "add_module register_forward_hook register_forward_pre_hook register_full_backward_hook "
    "register_hook "
    "register_backward_hook apply fit validate test predict evaluate compile save dump write "
    "writelines put send "
    "unlink mkdir rmdir rename write_text write_bytes touch manual_seed seed seed_all copyto "
    "place putmask "
    "put_along_axis fill_diagonal fill resize setflags toggle_optimizer untoggle_optimizer "
    "manual_backward "
    "clip_gradients clip_grad_norm save_checkpoint share_memory reset freeze unfreeze setstate "
    "remove_columns "
    "push_to_hub init jit load savetxt savez tofile"
)
# Of a list or set these change it and give nothing; of a tensor they give a new one.
COPIES_OF_TENSORS = _words("sort add")
# On a module these change it in place; on a tensor they give a new one.
MOVES = _words("half double float bfloat16 to cuda cpu type")
MODULES = frozenset(
    (
        "self",
        "model",
        "pl_module",
        "self.model",
        "module",
        "trainer.model",
        "trainer.lightning_module",
    )
)
CONTAINERS = _words(
    "list dict set sorted tuple int float str bool len sum min max round Counter defaultdict "
    "deque OrderedDict"
)
CREATIONS = _words(
    "zeros ones full empty arange eye linspace zeros_like ones_like full_like empty_like "
    "tensor array"
)
COPIES = _words("clone copy deepcopy item tolist")
FRAMEWORK_GETTERS = _words(
    "parameters named_parameters modules named_modules children named_children buffers "
    "named_buffers state_dict "
    "optimizers lr_schedulers get_parameter get_submodule get_buffer size dim numel"
)
# Of the frameworks' classes: what setting it, or giving it another body, changes.
FRAMEWORK_SETTINGS = _words(
    "automatic_optimization training trainer hparams strict_loading example_input_array args "
    "model optimizer "
    "lr_scheduler state control callback_handler accelerator data_collator train_dataset "
    "eval_dataset label_names "
    "label_smoother compute_loss_func model_wrapped processing_class compute_metrics "
    "loss_function precision"
)
FRAMEWORK_METHODS = _words(
    "forward training_step validation_step test_step predict_step configure_optimizers "
    "configure_model setup "
    "teardown prepare_data train_dataloader val_dataloader test_dataloader predict_dataloader "
    "optimizer_step "
    "optimizer_zero_grad backward configure_gradient_clipping lr_scheduler_step "
    "configure_callbacks "
    "configure_sharded_model toggle_optimizer transfer_batch_to_device state_dict "
    "load_state_dict train eval "
    "parameters named_parameters manual_backward log log_dict freeze unfreeze compute_loss "
    "prediction_step evaluate "
    "evaluation_loop prediction_loop create_optimizer create_scheduler "
    "create_optimizer_and_scheduler "
    "get_train_dataloader get_eval_dataloader get_test_dataloader get_batch_samples "
    "get_decay_parameter_names "
    "get_optimizer_cls_and_kwargs predict save_model num_examples floating_point_ops "
    "autocast_smart_context_manager "
    "preprocess_logits_for_metrics clip_gradients"
)
VALIDATION_STEPS = frozenset(
    ("validation_step", "prediction_step", "compute_metrics", "evaluate", "evaluation_loop")
)


def is_hook(name: str) -> bool:
    """Whether the frameworks call a method of that name at a moment of that name."""
    return name.startswith("on_")


def is_of_validation(name: str) -> bool:
    """Whether a method or function of that name runs while validating."""
    return name in VALIDATION_STEPS or name.startswith(("on_validation", "on_evaluate"))


def why_not_method(name: str) -> str:
    """Return why a method of that name must not be called; "" if nothing is known against it."""
    if name.endswith("_") and not name.startswith("_"):
        return "changes a tensor in place"
    if name in CHANGES or name.startswith(("set_", "register_")):
        return "changes what it is called on"
    return ""


def why_not_function(dotted: str) -> str:
    """Return why a function of a package must not be called.

    "" if its name shows that it only computes.
    """
    package, last = dotted.partition(".")[0], dotted.rpartition(".")[2]
    if dotted in GENERATORS:
        return ""
    if dotted.startswith(("random.", "numpy.random.")) or (
        last in DRAWS and package in PURE_PACKAGES
    ):
        return DRAWS_FROM_TRAINING
    if dotted.startswith(PURE_PREFIXES):
        return ""
    if package not in PURE_PACKAGES or dotted.startswith(IMPURE_PREFIXES):
        return "can't be seen to do nothing but compute; log it with a hook"
    if dotted.startswith("torch.nn.") and last[:1].isupper() and not last.endswith(DRAWLESS_LAYERS):
        return "draws its weights from the generator that the training draws from"
    return why_not_method(last)
