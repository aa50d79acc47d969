"""ESPnet's `config.yaml` of an asr1 model as our `model:` section.

A key is passed on, has to have the value with which our modules give the same numbers, or concerns
training alone. Any other is an error, as it could change the model's output.
"""

from collections.abc import Mapping
from typing import Any

from speechattn.importing.keys import Keys, chosen, fixed, ignored, passed, refuse, translate

_SAME_NAMES = "linear conv1d1 conv1d2 conv1d3 conv2d1 conv2d2 conv2d6 conv2d8".split()
_INPUT = {**{name: name for name in _SAME_NAMES}, "conv2d": "conv2d4", None: "none"}
# Input frames from one hidden frame to the next.
FACTORS = {kind: int(kind[-1]) if kind[-1].isdigit() else 1 for kind in _INPUT.values()}

_ANY_ENCODER: Keys = {
    "output_size": passed("output_size", 256),
    "attention_heads": passed("attention_heads", 4),
    "dropout_rate": passed("dropout", 0.1),
    "positional_dropout_rate": passed("position_dropout", 0.1),
    "attention_dropout_rate": passed("attention_dropout", 0.0),
    "input_layer": chosen("subsampling", "conv2d", _INPUT),
    "pos_enc_layer_type": fixed("rel_pos"),
    "rel_pos_type": fixed("latest"),
    "zero_triu": fixed(False),
    "qk_norm": fixed(False),
    # `padding_idx` is of `input_layer: embed`.
    **ignored("max_pos_emb_len padding_idx use_flash_attn use_sdpa gradient_checkpoint_layers"),
}
_GATE: Keys = {
    "attention_layer_type": fixed("rel_selfattn"),
    "cgmlp_linear_units": passed("cgmlp_units", 2048),
    "cgmlp_conv_kernel": passed("cgmlp_kernel", 31),
    "use_linear_after_conv": passed("gate_linear", False),
    "gate_activation": passed("gate_activation", "identity"),
    "num_blocks": passed("num_blocks", 12),
}
_INTERMEDIATE: Keys = {
    "interctc_layer_idx": passed("intermediate", ()),
    "interctc_use_conditioning": passed("self_conditioning", False),
    "layer_drop_rate": passed("layer_drop", 0.0),
}

ENCODERS: Mapping[str, tuple[str, Keys]] = {
    "conformer": (
        "speechattn.encoders.ConformerEncoder",
        {
            **_ANY_ENCODER,
            **_INTERMEDIATE,
            # The default of ESPnet's own class is the attention of before 2021.
            "rel_pos_type": chosen(
                "attention", "legacy", {"latest": "speechattn.attention.RelativeSelfAttention"}
            ),
            "linear_units": passed("linear_units", 2048),
            "num_blocks": passed("num_blocks", 6),
            "normalize_before": fixed(True),
            "concat_after": fixed(False),
            "positionwise_layer_type": fixed("linear"),
            "macaron_style": passed("macaron", False),
            "selfattention_layer_type": fixed("rel_selfattn"),
            "activation_type": passed("activation", "swish"),
            "use_cnn_module": fixed(True),
            "cnn_module_kernel": passed("conv_kernel", 31),
            "ctc_trim": fixed(False),
            **ignored("positionwise_conv_kernel_size"),
            "stochastic_depth_rate": passed("stochastic_depth", 0.0),
        },
    ),
    "branchformer": (
        "speechattn.encoders.BranchformerEncoder",
        {
            **_ANY_ENCODER,
            **_GATE,
            "use_attn": fixed(True),
            "use_cgmlp": fixed(True),
            "merge_method": passed("merge_method", "concat"),
            "cgmlp_weight": passed("cgmlp_weight", 0.5),
            "attn_branch_drop_rate": passed("attention_drop", 0.0),
            "stochastic_depth_rate": passed("stochastic_depth", 0.0),
        },
    ),
    "e_branchformer": (
        "speechattn.encoders.EBranchformerEncoder",
        {
            **_ANY_ENCODER,
            **_GATE,
            **_INTERMEDIATE,
            "use_ffn": passed("use_ffn", False),
            "macaron_ffn": passed("macaron", False),
            "ffn_activation_type": passed("activation", "swish"),
            "linear_units": passed("linear_units", 2048),
            "positionwise_layer_type": fixed("linear", None),
            "merge_conv_kernel": passed("merge_kernel", 3),
        },
    ),
}

DECODER: Keys = {
    "attention_heads": passed("attention_heads", 4),
    "linear_units": passed("linear_units", 2048),
    "num_blocks": passed("num_blocks", 6),
    "dropout_rate": passed("dropout", 0.1),
    "self_attention_dropout_rate": passed("attention_dropout", 0.0),
    "input_layer": fixed("embed"),
    "use_output_layer": fixed(True),
    "normalize_before": fixed(True),
    "concat_after": fixed(False),
    "qk_norm": fixed(False),
    **ignored(
        "positional_dropout_rate src_attention_dropout_rate layer_drop_rate use_flash_attn "
        "use_sdpa gradient_checkpoint_layers"
    ),
}

FRONTEND: Keys = {
    "fs": passed("sample_rate", 16000),
    "n_fft": passed("fft_size", 512),
    "win_length": passed("window_size"),
    "hop_length": passed("hop", 128),
    "n_mels": passed("num_bins", 80),
    "fmin": passed("low"),
    "fmax": passed("high"),
    "htk": passed("htk", False),
    "window": fixed("hann"),
    "center": fixed(True),
    "normalized": fixed(False),
    "onesided": fixed(True),
    "apply_stft": fixed(True),
    **ignored("frontend_conf"),  # of a microphone array, checked apart
}
NORMALIZE: Keys = {
    "norm_means": passed("means", True),
    "norm_vars": passed("variances"),
    # `eps` is 1e-20, below any deviation; the statistics are in the checkpoint.
    **ignored("eps stats_file"),
}
MODEL: Keys = {
    "sym_space": fixed("<space>"),
    "sym_blank": fixed("<blank>"),
    "sym_sos": fixed("<sos/eos>"),
    "sym_eos": fixed("<sos/eos>"),
    "lang_token_id": fixed(-1),
    "transducer_multi_blank_durations": fixed([], None),
    "ctc_weight": passed("ctc_weight", 0.5),
    **ignored(
        "aux_ctc interctc_weight ignore_id lsm_weight length_normalized_loss report_cer "
        "report_wer transducer_multi_blank_sigma autocast_frontend "
        "extract_feats_in_collect_stats"
    ),
}
CTC: Keys = {
    "dropout_rate": passed("ctc_dropout", 0.0),
    **ignored(
        "ctc_type reduce ignore_nan_grad zero_infinity brctc_risk_strategy "
        "brctc_group_strategy brctc_risk_factor"
    ),
}

# The top level: what shapes the model, then what only training reads.
TOP: Keys = {
    "frontend": fixed("default"),
    "input_size": fixed(None),
    "preencoder": fixed(None),
    "postencoder": fixed(None),
    "model": fixed("espnet"),
    "speech_volume_normalize": fixed(None),
    "use_lang_prompt": fixed(False, None),
    "use_nlp_prompt": fixed(False, None),
    "use_adapter": fixed(False, None),
    **ignored(
        "frontend_conf normalize normalize_conf encoder encoder_conf decoder decoder_conf "
        "ctc_conf model_conf token_list token_type bpemodel "
        "preencoder_conf postencoder_conf joint_net_conf specaug specaug_conf preprocessor "
        "preprocessor_conf cleaner g2p non_linguistic_symbols aux_ctc_tasks version required "
        "config print_config use_preprocessor init adapter adapter_conf "
        "accum_grad allow_multi_rates allow_variable_data_keys batch_bins batch_size "
        "batch_type best_model_criterion category_sample_size category_upsampling_factor "
        "chunk_default_fs chunk_discard_short_samples chunk_excluded_key_prefixes "
        "chunk_length chunk_max_abs_length chunk_shift_ratio collect_stats "
        "create_graph_in_tensorboard cudnn_benchmark cudnn_deterministic cudnn_enabled "
        "dataset_scaling_factor dataset_upsampling_factor ddp_comm_hook deepspeed_config "
        "detect_anomaly dist_backend dist_init_method dist_launcher dist_master_addr "
        "dist_master_port dist_rank dist_world_size distributed drop_last_iter dry_run "
        "early_stopping_criterion exclude_weight_decay exclude_weight_decay_conf fold_length "
        "freeze_param grad_clip grad_clip_type grad_noise gradient_as_bucket_view "
        "ignore_init_mismatch init_param iterator_type keep_nbest_models local_rank "
        "log_interval log_level max_batch_size max_cache_fd max_cache_size max_epoch "
        "min_batch_size multi_task_dataset multiple_iterator multiprocessing_distributed "
        "nbest_averaging_interval ngpu no_forward_run noise_apply_prob noise_db_range "
        "noise_scp num_att_plot num_cache_chunks num_iters_per_epoch num_workers optim "
        "optim_conf output_dir patience pretrain_path resume rir_apply_prob rir_scp "
        "save_strategy scheduler scheduler_conf seed sharded_ddp short_noise_thres "
        "shuffle_within_batch sort_batch sort_in_batch train_data_path_and_name_and_type "
        "train_dtype train_shape_file unused_parameters upsampling_factor use_amp "
        "use_deepspeed use_matplotlib use_tensorboard use_tf32 use_wandb "
        "val_scheduler_criterion valid_batch_bins valid_batch_size valid_batch_type "
        "valid_data_path_and_name_and_type valid_iterator_type valid_max_cache_size "
        "valid_shape_file wandb_allow_val_change wandb_entity wandb_id "
        "wandb_model_log_interval wandb_name wandb_project write_collected_feats"
    ),
}


def read_config(config: Mapping[str, Any], vocab_size: int, where: str) -> dict[str, Any]:
    """Return our `model:` section for an ESPnet configuration.

    Args:
        config: all of `config.yaml`.
        vocab_size: tokens in its list.
        where: the file, for messages.

    Raises:
        ConfigError: it lists every key that cannot be imported.
    """
    problems: list[str] = []
    features = config.get("input_size")
    if features is not None:
        problems.append(
            f"input_size: {features}: the model takes features that were computed outside of it, "
            "such as Kaldi's fbank_pitch; only models that take sound (feats_type raw, "
            "`frontend: default`) can be imported"
        )
        config = {key: value for key, value in config.items() if key not in _FEATURES}
    translate(config, TOP, "", problems)
    model = translate(config.get("model_conf"), MODEL, "model_conf.", problems)
    encoder = _encoder(config, vocab_size, problems)
    frontend = _frontend(config, problems)
    section: dict[str, Any] = {"audio": {"frontend": frontend, "encoder": encoder}}
    weight = model["ctc_weight"]
    if not isinstance(weight, (int, float)):
        problems.append(f"model_conf.ctc_weight: {weight!r}: is no number")
    if weight == 0:
        problems.append("model_conf.ctc_weight: 0: there is no CTC head, and ours have one")
    if weight != 1:
        section["decoder"] = _decoder(config, encoder, problems)
    section |= translate(config.get("ctc_conf"), CTC, "ctc_conf.", problems)
    refuse(problems, f"{where} cannot be imported")
    sound, sizes = frontend["init_args"], encoder["init_args"]
    sizes["input_size"] = sound["num_bins"]
    section["sample_rate"] = sound["sample_rate"]
    section["frame_shift"] = FACTORS[sizes["subsampling"]] * sound["hop"] / sound["sample_rate"]
    return section


_FEATURES = ("input_size", "frontend", "frontend_conf")


def _encoder(config: Mapping[str, Any], vocab_size: int, problems: list[str]) -> dict[str, Any]:
    name = config.get("encoder", "rnn")
    if not isinstance(name, str) or name not in ENCODERS:
        problems.append(f"encoder: {name!r}: only {', '.join(ENCODERS)} can be imported")
        return {"init_args": {"output_size": 0}}
    class_path, keys = ENCODERS[name]
    arguments = translate(config.get("encoder_conf"), keys, "encoder_conf.", problems)
    if not arguments.pop("use_ffn", True):
        arguments["linear_units"] = 0
    if "self_conditioning" in arguments:
        arguments["self_conditioning"] = vocab_size if arguments["self_conditioning"] else 0
        layers = arguments["intermediate"] or ()
        if not isinstance(layers, (list, tuple)):
            problems.append(f"encoder_conf.interctc_layer_idx: {layers!r}: is no list of layers")
            layers = ()
        arguments["intermediate"] = list(layers)
    return {"class_path": class_path, "init_args": arguments}


def _decoder(
    config: Mapping[str, Any], encoder: Mapping[str, Any], problems: list[str]
) -> dict[str, Any]:
    if config.get("decoder") != "transformer":
        problems.append(f"decoder: {config.get('decoder')!r}: only 'transformer' can be imported")
        return {}
    arguments = translate(config.get("decoder_conf"), DECODER, "decoder_conf.", problems)
    width = encoder["init_args"]["output_size"]  # ESPnet's decoder is as wide as its encoder
    return {
        "class_path": "speechattn.decoders.TransformerDecoder",
        "init_args": {"memory_size": width, "width": width, **arguments},
    }


def _frontend(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    section = config.get("frontend_conf")
    arguments = translate(section, FRONTEND, "frontend_conf.", problems)
    array = section.get("frontend_conf") if isinstance(section, Mapping) else None
    array = array if isinstance(array, Mapping) else {}
    for name in ("use_wpe", "use_beamformer"):
        if array.get(name):
            problems.append(f"frontend_conf.frontend_conf.{name}: true: only false can be imported")
    try:
        arguments["sample_rate"] = _hertz(arguments["sample_rate"])
    except ValueError:
        problems.append(f"frontend_conf.fs: {arguments['sample_rate']!r}: is no sample rate")
    for key in ("n_fft", "hop_length", "n_mels"):
        value = arguments[FRONTEND[key].to]
        if not isinstance(value, int) or value < 1:
            problems.append(f"frontend_conf.{key}: {value!r}: has to be a whole number above 0")
    arguments["low"] = arguments["low"] or 0.0
    arguments["normalise"] = _normalise(config, problems)
    return {"class_path": "speechattn.frontends.EspnetLogMel", "init_args": arguments}


def _hertz(rate: int | str) -> int:
    """Return a sample rate in Hz, 16000 for 16k; ValueError if it is no whole number above 0."""
    text = str(rate).lower()
    hertz = float(text.removesuffix("k")) * (1000 if text.endswith("k") else 1)
    if hertz < 1 or not hertz.is_integer():
        raise ValueError(rate)
    return int(hertz)


def _normalise(config: Mapping[str, Any], problems: list[str]) -> str:
    kind = config.get("normalize", "utterance_mvn")
    if kind is None:
        return "none"
    if kind not in ("global_mvn", "utterance_mvn"):
        problems.append(f"normalize: {kind!r}: only 'global_mvn' or 'utterance_mvn' or None")
        return "none"
    flags = translate(config.get("normalize_conf"), NORMALIZE, "normalize_conf.", problems)
    variances = flags["variances"]
    if kind == "global_mvn":
        if not flags["means"] or variances is False:
            problems.append("normalize_conf: norm_means and norm_vars have to be true")
        return "global"
    if not flags["means"]:
        problems.append("normalize_conf.norm_means: False: only True can be imported")
    return "utterance" if variances else "utterance_mean"
