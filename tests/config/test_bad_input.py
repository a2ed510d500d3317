"""Wrong input: one line with the rule, the values and the knob, for every way we know to get it wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config import ConfigError, load_config

WORLD = 8  # tensor 2 x pipeline 2 x data 2 in the good configuration

# id, overrides over the good configuration, the message
CASES = [
    (
        "misspelt_key",
        ["model.num_layer=2"],
        r"megatron_slw\.model\.num_layer is not a setting\. Did you mean num_layers",
    ),
    (
        "key_of_nothing",
        ["parallel.xyz=2"],
        r"parallel\.xyz is not a setting\. .* pipeline, sequence_parallel and tensor",
    ),
    ("section", ["megatron_slw.modle={}"], r"megatron_slw\.modle is not a setting\. Did you mean model"),
    (
        "top_level_key",
        ["gradient_cliping=1"],
        r"gradient_cliping is not a setting\. Did you mean gradient_clipping",
    ),
    ("zero_key", ["zero_optimization.stagee=1"], r"zero_optimization\.stagee .* Did you mean stage"),
    ("optimizer_key", ["optimizer.params.beta=[0.9,0.95]"], r"optimizer\.params\.beta .* Did you mean betas"),
    ("bf16_key", ["bf16.enable=true"], r"bf16\.enable is not a setting\. Did you mean enabled"),
    ("missing", ["model.hidden_size=null"], r"model\.hidden_size is missing"),
    ("no_sections", ["megatron_slw=null"], r"megatron_slw is missing"),
    ("no_data", ["data=null"], r"megatron_slw\.data\.path is missing"),
    ("fraction", ["model.num_layers=1.5"], r"num_layers must be an integer, not 1\.5"),
    ("bool_for_int", ["model.num_layers=true"], r"num_layers must be an integer, not true"),
    ("string_for_int", ['model.num_layers="8"'], r'num_layers must be an integer, not "8"'),
    ("zero_layers", ["model.num_layers=0"], r"num_layers must be greater than 0, not 0"),
    ("grow_when", ["training.grow_when=now"], r"training\.grow_when must be .*auto.*, not \"now\""),
    ("grow_slope", ["training.grow_slope=0.05"], r"training\.grow_slope must be less than 0\.?0?, not 0\.05"),
    (
        "grow_unmeasured",
        ["training.grow_when=auto", "evaluation.interval=0"],
        r"training\.grow_when auto is judged by validation losses, but evaluation\.interval is 0\. Set it",
    ),
    ("on_spike", ["training.on_spike=retry"], r"training\.on_spike must be .*rollback.*, not \"retry\""),
    ("spike_sigmas", ["training.spike_sigmas=0"], r"training\.spike_sigmas must be greater than 0\.?0?, not 0"),
    ("spike_limit", ["training.spike_limit=0"], r"training\.spike_limit must be greater than 0, not 0"),
    ("rollback_steps", ["training.rollback_steps=0"], r"training\.rollback_steps must be greater than 0, not 0"),
    ("rerun", ["training.rerun=2"], r"training\.rerun must be true or false, not 2"),
    (
        "rollback_unsaved",
        ["training.on_spike=rollback", "checkpoint.interval=0"],
        r"training\.on_spike rollback goes back .* checkpoint\.interval is 0\. Set it .* or use skip",
    ),
    ("task_unknown", ['evaluation.tasks=[{"task": "hellaswag", "data": "x"}]'], r"tasks\.0\.task must be .*text"),
    ("task_no_data", ['evaluation.tasks=[{"task": "text"}]'], r"evaluation\.tasks\.0\.data is missing"),
    ("tasks_no_list", ['evaluation.tasks={"task": "text"}'], r"evaluation\.tasks must be a list, not"),
    ("task_no_object", ['evaluation.tasks=["lambada"]'], r"tasks\.0 must be a JSON object, not"),
    (
        "task_misspelt",
        ['evaluation.tasks=[{"task": "text", "data": "x", "interval": 5, "strides": 8}]'],
        r"evaluation\.tasks\.0\.strides is not a setting\. Did you mean stride",
    ),
    ("task_interval", ['evaluation.tasks=[{"task": "text", "data": "x", "interval": -1}]'], r"interval must be at l"),
    (
        "task_names",
        ['evaluation.tasks=[{"task": "text", "data": "x"}, {"task": "lambada", "data": "y", "name": "text"}]'],
        r"evaluation\.tasks\.0 and 1 are both called \"text\"\. Give one",
    ),
    (
        "task_stride",
        ['evaluation.tasks=[{"task": "text", "data": "x", "stride": 4096}]'],
        r"evaluation\.tasks\.0\.stride 4096 is more than the model's length \d+\. Lower it",
    ),
    (
        "task_lambada_stride",
        ['evaluation.tasks=[{"task": "lambada", "data": "x", "stride": 8}]'],
        r"evaluation\.tasks\.0\.stride 8 has no meaning for lambada",
    ),
    (
        "task_lambada_key",
        ['evaluation.tasks=[{"task": "lambada", "data": "x", "json_key": "t"}]'],
        r"evaluation\.tasks\.0\.json_key \"t\" has no meaning for lambada",
    ),
    ("negative_seed", ["training.seed=-1"], r"seed must be at least 0, not -1"),
    ("dropout_one", ["model.hidden_dropout=1.0"], r"hidden_dropout must be less than 1\.?0?, not 1\.0"),
    ("dropout_text", ["model.hidden_dropout=high"], r'hidden_dropout must be a number, not "high"'),
    ("int_for_bool", ["parallel.sequence_parallel=1"], r"sequence_parallel must be true or false, not 1"),
    ("int_for_text", ["data.path=7"], r"data\.path must be a string, not 7"),
    ("empty_path", ["data.path="], r'data\.path must be a string that is not empty, not ""'),
    ("blend_empty", ["data.path=[]"], r"data\.path must be a list of weights above 0 and prefixes in turn"),
    ("blend_no_prefix", ['data.path=[0.3, "a", 0.7]'], r'data\.path must be a list of weights .* not \[0\.3, "a"'),
    ("blend_zero_weight", ['data.path=[0, "a", 1, "b"]'], r"data\.path must be a list of weights above 0"),
    ("blend_bool_weight", ['data.path=[true, "a"]'], r"data\.path must be a list of weights above 0"),
    ("blend_text_weight", ['data.path=["0.3", "a"]'], r"data\.path must be a list of weights above 0"),
    ("blend_empty_prefix", ['data.path=[1, ""]'], r"data\.path must be a list of weights above 0 and prefixes"),
    ("blend_twice", ['data.path=[1, "a", 2, "a"]'], r"data\.path must be a list with each prefix once"),
    ("allow_changed", ["data.allow_changed=1"], r"data\.allow_changed must be true or false, not 1"),
    ("reset_positions", ["data.reset_position_ids=1"], r"data\.reset_position_ids must be true or false, not 1"),
    ("reset_mask", ['data.reset_attention_mask="no"'], r'reset_attention_mask must be true or false, not "no"'),
    ("reset_name", ["data.reset_position_id=true"], r"is not a setting\. Did you mean reset_position_ids"),
    ("attention", ["model.attention=flash"], r'attention must be "auto", "sdpa" or "fused_softmax", not "flash"'),
    ("operators", ["ops.backend=cuda"], r'backend must be "auto", "csrc", "torch" or "apex", not "cuda"'),
    ("activation", ["model.activation=relu"], r'activation must be "gelu_tanh" or "gelu", not "relu"'),
    ("wandb_key", ['logging.wandb={"project":"p","tag":["a"]}'], r"logging\.wandb\.tag is not .* Did you mean tags"),
    ("wandb_no_project", ["logging.wandb.mode=offline"], r"logging\.wandb\.project is missing"),
    (
        "wandb_mode",
        ['logging.wandb={"project":"p","mode":"on"}'],
        r'logging\.wandb\.mode must be "online" or "offline", not "on"',
    ),
    ("wandb_type", ["logging.wandb=true"], r"logging\.wandb must be a JSON object, not true"),
    ("callback_type", ["logging.callback=1"], r"logging\.callback must be a string, not 1"),
    ("section_type", ["model=[1]"], r"megatron_slw\.model must be a JSON object, not \[1\]"),
    ("betas_count", ["optimizer.params.betas=[0.9]"], r"optimizer\.params\.betas.* is missing"),
    ("betas_type", ["optimizer.params.betas=0.9"], r"optimizer\.params\.betas must be a list, not 0\.9"),
    ("no_lr", ['optimizer={"type":"AdamW"}'], r"optimizer\.params\.lr is missing"),
    ("lr_zero", ["optimizer.params.lr=0"], r"optimizer\.params\.lr must be greater than 0"),
    ("lr_auto", ["optimizer.params.lr=auto"], r'optimizer\.params\.lr must be a number, not "auto"'),
    ("no_optimizer", ["optimizer=null"], r"optimizer is missing"),
    ("optimizer_type", ["optimizer.type=Lion"], r'optimizer\.type must be Adam, AdamW or SGD, not "Lion"'),
    ("momentum_adam", ["optimizer.params.momentum=0.9"], r"optimizer\.params\.momentum is not a setting"),
    ("max_grad_norm", ["optimizer.params.max_grad_norm=1"], r"max_grad_norm .* set gradient_clipping"),
    (
        "clipping_type",
        ["gradient_clipping=yes"],
        r'gradient_clipping must be a number of at least 0, not "yes"',
    ),
    (
        "clipping_negative",
        ["gradient_clipping=-1"],
        r"gradient_clipping must be a number of at least 0, not -1",
    ),
    ("both_half_types", ["fp16.enabled=true"], r"bf16\.enabled and fp16\.enabled are both true"),
    ("half_switch", ["bf16.enabled=1"], r"bf16\.enabled must be true or false, not 1"),
    ("accumulation_type", ["data_types.grad_accum_dtype=fp16"], r'must be fp32 or bf16 .* not "fp16"'),
    ("zero_four", ["zero_optimization.stage=4"], r"zero_optimization\.stage must be 0, 1, 2 or 3, not 4"),
    ("zero_true", ["zero_optimization.stage=true"], r"zero_optimization\.stage must be .*, not true"),
    ("zero_bucket", ["zero_optimization.reduce_bucket_size=auto"], r'size must be a number .* not "auto"'),
    ("zero_pipeline", ["zero_optimization.stage=2"], r"stage 2 does not work with parallel\.pipeline 2"),
    (
        "half_without_zero",
        ["zero_optimization.stage=0"],
        r"bf16 needs zero_optimization\.stage 1, 2 or 3, not 0",
    ),
    (
        "offload",
        ['zero_optimization.offload_optimizer={"device":"cpu"}'],
        r"offload_optimizer is not supported",
    ),
    (
        "scheduler",
        ['scheduler={"type":"WarmupLR"}'],
        r"scheduler is not supported: .*training\.lr_warmup_steps",
    ),
    (
        "elasticity",
        ['elasticity={"enabled":true}'],
        r"elasticity is not supported: it changes the global batch",
    ),
    ("compression", ["compression_training={}"], r"compression_training is not supported"),
    (
        "autotp",
        ['tensor_parallel={"autotp_size":2}'],
        r"tensor_parallel .* set megatron_slw\.parallel\.tensor",
    ),
    (
        "pipeline_flags",
        ['pipeline={"pipe_partitioned":true}'],
        r"pipeline is not supported: .*parallel\.pipeline",
    ),
    (
        "heads_hidden",
        ["model.num_attention_heads=10"],
        r"num_attention_heads 10 does not divide .*768.* 760 or 770",
    ),
    (
        "tensor_heads",
        ["parallel.tensor=5"],
        r"parallel\.tensor 5 does not divide .*heads 12\. Use 1, 2, 3, 4, 6 or 12",
    ),
    (
        "tensor_ffn",
        ["model.ffn_hidden_size=1001"],
        r"parallel\.tensor 2 does not divide model\.ffn_hidden_size 1001",
    ),
    ("stages", ["parallel.pipeline=13"], r"parallel\.pipeline 13 is more than model\.num_layers 12"),
    ("world", ["parallel.pipeline=3"], r"8 ranks cannot hold .*2 x parallel\.pipeline 3 = 6 ranks"),
    (
        "batch_micro",
        ["train_batch_size=63"],
        r"63 is not divisible by micro-batch 4 x data-parallel 2 = 8\. Use 64",
    ),
    ("batch_small", ["train_batch_size=3"], r"train_batch_size 3 is not divisible .* = 8\. Use 8"),
    (
        "batch_all",
        ["gradient_accumulation_steps=3"],
        r"train_batch_size 64 is not train_micro_batch_size_per_gpu 4 x .* 3 x data-parallel 2 = 24\. Use 24",
    ),
    (
        "batch_steps",
        ["train_micro_batch_size_per_gpu=null", "gradient_accumulation_steps=5"],
        r"64 is not divisible by accumulation steps 5 x data-parallel 2 = 10\. Use 60",
    ),
    (
        "batch_none",
        ["train_micro_batch_size_per_gpu=null", "train_batch_size=null"],
        r"train_batch_size or train_micro_batch_size_per_gpu must be given",
    ),
    (
        "batch_type",
        ["train_batch_size=6.4e1"],
        r"train_batch_size must be an integer greater than 0, not 64\.0",
    ),
    ("batch_zero", ["train_batch_size=0"], r"train_batch_size must be an integer greater than 0, not 0"),
    ("no_length", ["training.train_tokens=null"], r"train_tokens, .* or training\.train_epochs must be given"),
    (
        "two_lengths",
        ["training.train_steps=5"],
        r"train_tokens 1000000000 and training\.train_steps 5 are both given",
    ),
    (
        "two_warmups",
        ["training.lr_warmup_tokens=5"],
        r"lr_warmup_steps 100 and training\.lr_warmup_tokens 5 are both",
    ),
    (
        "warmup_tokens",
        ["training.lr_warmup_steps=null", "training.lr_warmup_tokens=1000000000"],
        r"lr_warmup_tokens 1000000000 must be less than training\.train_tokens 1000000000",
    ),
    (
        "warmup_steps",
        ["training.train_tokens=null", "training.train_steps=100"],
        r"lr_warmup_steps 100 must be less than training\.train_steps 100",
    ),
    ("min_lr", ["training.min_lr=0.1"], r"training\.min_lr 0\.1 is more than .*lr 0\.0006"),
    ("decay_style", ["training.lr_decay_style=exp"], r'lr_decay_style must be .* not "exp"'),
    ("split_words", ["data.split=most,some,few"], r'split must be three numbers .* not "most,some,few"'),
    ("split_two", ['data.split="90,10"'], r'split must be three numbers .* not "90,10"'),
    ("split_zero", ['data.split="0,0,0"'], r'split "0,0,0" leaves nothing to train on'),
    (
        "split_valid",
        ['data.split="1,0,0"'],
        r'split "1,0,0" leaves nothing to validate on.* evaluation\.interval',
    ),
    (
        "min_over_max",
        ["curriculum.min_difficulty=2000"],
        r"min_difficulty 2000 is more than max_difficulty 1024",
    ),
    (
        "max_over_full",
        ["curriculum.max_difficulty=2048"],
        r"max_difficulty 2048 is more than model\.seq_length 1024",
    ),
    (
        "max_under_full",
        ["curriculum.max_difficulty=512"],
        r"max_difficulty 512 is less than model\.seq_length 1024",
    ),
    (
        "no_duration",
        ["curriculum.total_curriculum_step=null"],
        r"must have exactly one of total_curriculum_step, .* or duration: .*fixed_linear takes. There is none of them",
    ),
    (
        "duration_zero",
        ["curriculum.total_curriculum_step=0"],
        r"schedule_config\.total_curriculum_step must be greater",
    ),
    ("linear_root", ["curriculum.root_degree=2"], r"root_degree is not used by schedule_type fixed_linear"),
    (
        "root_degree",
        ["curriculum.schedule_type=fixed_root"],
        r"root_degree is missing: .*fixed_root needs it",
    ),
    (
        "schedule_type",
        ["curriculum.schedule_type=fixed_cosine"],
        r'must be fixed_linear, .* not "fixed_cosine"',
    ),
    ("schedule_list", ["curriculum.schedule_type=[]"], r"schedule_type must be .* not \[\]"),
    (
        "curriculum_name",
        ["curriculum.min_dificulty=8"],
        r"curriculum\.min_dificulty .* Did you mean min_difficulty",
    ),
    (
        "sequence_parallel_full",
        ["parallel.sequence_parallel=true", "model.seq_length=1023", "curriculum.max_difficulty=1023"],
        r"seq_length 1023 is not divisible by parallel\.tensor 2",
    ),
    ("legacy_too", ['curriculum_learning={"enabled":true}'], r"are both present\. Keep one"),
    ("no_value", ["--model.num_layers"], r'"--model\.num_layers" has no value'),
    ("through_number", ["train_batch_size.x=1"], r"train_batch_size is 64, not a JSON object"),
    ("bad_json_value", ["optimizer={type:AdamW}"], r"the value of --optimizer is not JSON"),
    ("no_name", ["=3"], r"has no setting's name"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_wrong_setting(tmp_path: Path, good: dict[str, Any], overrides: list[str], message: str) -> None:
    path = tmp_path / "ds_slw.json"
    path.write_text(json.dumps(good), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, world_size=WORLD)
    text = str(caught.value)
    assert re.search(message, text), text
    assert "\n" not in text and len(text) < 400 and text[-1] in ".?"
    assert text.startswith((str(path), "command line"))


def discrete(lengths: list[int], ends: list[int]) -> dict[str, Any]:
    config = {"difficulty": lengths, "max_step": ends}
    block = {"min_difficulty": 8, "max_difficulty": 1024, "schedule_type": "fixed_discrete"}
    return {"seqlen_truncate": block | {"schedule_config": config}}


GOOD_METRIC: dict[str, Any] = discrete([8, 1024], [10])["seqlen_truncate"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (discrete([8, 1024], [10, 20]), r"difficulty has 2 lengths and max_step 2 ends"),
        (discrete([8, 64, 1024], [20, 20]), r"max_step must increase, it has 20 before 20"),
        (discrete([8, 2048, 1024], [10, 20]), r"difficulty 2048 is more than model\.seq_length 1024"),
        (discrete([8, 512], [10]), r"difficulty ends at 512, not at model\.seq_length 1024"),
        (discrete([8, 0, 1024], [10, 20]), r"schedule_config\.difficulty\.1 must be greater than 0, not 0"),
        (discrete([], []), r"difficulty has 0 lengths"),
        ({}, r"must hold one metric of lengths \(.*\), batch_size, or both, it holds \[\]"),
        ({"seqlen_truncate": {}, "seqlen_replay": {}}, r"must hold one metric of lengths"),
        ({"seqlen_truncate": {}, "vocabularyrarity": {}}, r"vocabularyrarity is not a setting"),
        (
            {"seqlen_trunkate": GOOD_METRIC},
            r"seqlen_trunkate is not a setting\. Did you mean seqlen_truncate",
        ),
        (
            {"seqlen_truncate": GOOD_METRIC | {"difficulty_type": "percentile"}},
            r'must be "value" .*"percentile"',
        ),
        ({"seqlen_truncate": {"min_difficulty": 8}}, r"seqlen_truncate\.schedule_type is missing"),
    ],
)
def test_wrong_metric(good: dict[str, Any], tmp_path: Path, metrics: dict[str, Any], message: str) -> None:
    good["data_efficiency"]["data_sampling"]["curriculum_learning"]["curriculum_metrics"] = metrics
    path = tmp_path / "ds_slw.json"
    path.write_text(json.dumps(good), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(path, world_size=WORLD)


def test_lengths_may_go_down(good: dict[str, Any], tmp_path: Path) -> None:
    metrics = discrete([64, 1024, 128, 1024], [10, 20, 30])
    good["data_efficiency"]["data_sampling"]["curriculum_learning"]["curriculum_metrics"] = metrics
    path = tmp_path / "ds_slw.json"
    path.write_text(json.dumps(good), encoding="utf-8")
    curriculum = load_config(path, world_size=WORLD).curriculum
    assert curriculum is not None and curriculum.difficulty == (64, 1024, 128, 1024)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is not JSON: Expecting value, line 1 column 1"),
        (b"{'a': 1}", r"is not JSON: .*line 1 column 2"),
        (b'{"a": 1, "a": 2}', r'"a" stands twice in one object, as 1 and as 2'),
        (b'{"a": NaN}', r"NaN is not a JSON number"),
        (b'{"a": -Infinity}', r"-Infinity is not a JSON number"),
        (b'{"a": 1e999}', r'the number "1e999" is too large'),
        (b'{"a": ' + b"9" * 5000 + b"}", r"the number .* is too large"),
        (b"[1]", r"its content must be a JSON object, not \[1\]"),
        (b"\xff\xfe{}", r"is not UTF-8 text \(byte 0\)"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', r"is longer than 1,048,576 bytes"),
        (b'{"a":' * 100_000, r"nested too deeply"),
    ],
)
def test_wrong_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "ds_slw.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.json: cannot be read: No such file or directory\."):
        load_config(tmp_path / "missing.json")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory\."):
        load_config(tmp_path)


@pytest.mark.parametrize("world_size", [0, -1, True])
def test_world_size(tmp_path: Path, good: dict[str, Any], world_size: int) -> None:
    path = tmp_path / "ds_slw.json"
    path.write_text(json.dumps(good), encoding="utf-8")
    with pytest.raises(ConfigError, match="the world size must be an integer greater than 0"):
        load_config(path, world_size=world_size)
