"""Secrets as people's configs, notes and commands have them, and harmless look-alikes: what records are searched for.

Every secret is made up here, in parts, so that no file of the repository looks as if it held one.
"""

from __future__ import annotations

from typing import Any

BODY = "aQ1zX2sW3eD4cR5fV6tG7bY8hN9uJ0mK"
"""Letters of both cases and digits, as random keys have them."""
HEXES = "0fa9" * 10
COMMIT = "4be1" * 10
_JWT = ".".join(("eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxMjM0NTY3ODkwIn0", f"doz{BODY}"))
_PEM = "-----BEGIN {0} PRIVATE" + " KEY-----\nMIIEow" + BODY + "\n-----END {0} PRIVATE" + " KEY-----"

BY_NAME = (
    "hf_token",
    "HUGGING_FACE_HUB_TOKEN",
    "push_to_hub_token",
    "client_secret",
    "openai_key",
    "token",
    "github_token",
    "authorization",
    "bearer",
    "cookie",
    "pwd",
    "db_pass",
    "redis_pw",
    "passphrase",
    "webhook_url",
    "api.key",
    "wandb.key",
    "AWS_SECRET_ACCESS_KEY",
    "AZURE_STORAGE_KEY",
    "sas_token",
    "refreshToken",
    "csrf_token",
    "signing_key",
    "license_key",
    "MODAL_TOKEN_SECRET",
    "MLFLOW_TRACKING_PASSWORD",
    "NEPTUNE_API_TOKEN",
    "smtp.auth",
    "vault_pin",
    "dsn",
    "dbPassword",
    "Passwort",
    "contraseña",
    "Kennwort_2",
    "wiki.пароль",
    "密码",
    "recovery_codes",
    "wandbApiKey",
)
"""Names, dotted ones nested, whose value is a secret whatever it is."""

BY_SHAPE = {
    "GitHub": "ghp_" + BODY + "a1B2",
    "GitHub, fine-grained": "github_pat_11" + BODY * 2,
    "Hugging Face": "hf_" + BODY + "zX",
    "AWS": "AKIA" + "IOSFODNN7EXAMPLE",
    "W&B": HEXES,
    "OpenAI": "sk-proj-" + BODY * 2,
    "Anthropic": "sk-ant-" + "api03-" + BODY,
    "OpenRouter": "sk-or-v1-" + HEXES,
    "Slack": "xoxb-" + "1234567890-" + BODY,
    "Google": "AIza" + "Sy" + BODY,
    "a web token": _JWT,
    "RSA": _PEM.format("RSA"),
    "OpenSSH": _PEM.format("OPENSSH"),
    "GitLab": "glpat-" + BODY,
    "Stripe": "sk_" + "live_" + BODY,
    "SendGrid": "SG." + BODY[:22] + "." + BODY,
    "Telegram": "123456789:AA" + BODY + "x",
    "Twilio": "SK" + HEXES[:32],
    "Databricks": "dapi" + HEXES[:32],
    "Together": "tgp_v1_" + BODY,
    "xAI": "xai-" + BODY * 2,
    "Perplexity": "pplx-" + BODY,
    "Linear": "lin_api_" + BODY,
    "Notion": "ntn_" + BODY,
    "Sentry": "sntrys_" + BODY,
    "Shopify": "shpat_" + HEXES[:32],
    "Doppler": "dp.pt." + BODY,
    "Vault": "hvs." + BODY,
    "Grafana": "glsa_" + BODY + "_0fa90fa9",
    "age": "AGE-SECRET-KEY-1" + "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L",
    "Fireworks": "fw_" + BODY,
    "Modal": "ak-" + BODY,
    "a service that nobody knows": "zorblax_" + BODY,
    "PyPI": "pypi-" + "AgEIcHlwaS5vcmc" + BODY,
    "a salted hash": "$apr1$" + "q1w2e3r4$" + BODY,
}
"""Secrets that are seen to be some wherever they stand."""

IN_TEXT = (
    "python train.py --token={} --lr 1",
    "python train.py --hub_token {} --lr 1",
    "WANDB_API_KEY={} python train.py",
    "export HF_TOKEN={}; python train.py",
    "+logger.wandb.api_key={}",
    'curl -H "Authorization: Bearer {}" x',
    "curl -sL -u jane:{} https://host.example/a",
    "sshpass -p {} ssh node",
    "mysql -u root -p{} runs",
    "docker login -u jane --password {}",
    "lr: 1\napi_key: {}\nwidth: 2",
    '{{"token": "{}", "lr": 1}}',
    "my password is {}",
    "https://jane:{}@host.example/a",
    "https://{}@git.example/a.git",
    "postgresql://jane:{}@db/runs",
    "redis://:{}@host:6379/0",
    "https://acc.example/c?sv=2020&sig={}",
    "https://host.example/x?access_token={}",
    "https://host.example/cb#access_token={}",
    "jdbc:mysql://host/db?user=a&password={}",
    "https://hooks.slack.com/services/T000/B000/{}",
    "https://discord.com/api/webhooks/123/{}",
    "AccountName=x;AccountKey={};EndpointSuffix=core",
    "aws configure set aws_secret_access_key {}",
    '["train.py", "--db-password", "{}", "--lr", "0.1"]',
    "machine git.example login ada password {}",
    "[default]\naws_secret_access_key = {}\nregion = eu",
    'api_token = "{}"\nwidth = 2',
    "$env:HF_TOKEN = '{}'",
    '{{\\\\\\"password\\\\\\": \\\\\\"{}\\\\\\"}}',
    "https://host.example/?q=1%26password%3D{}",
    "docker login --password-stdin <<< {}",
    "<user>ada</user><password>{}</password>",
)
"""Texts that hold one, which is left out of them while the rest stays."""

HARMLESS: tuple[tuple[str, Any], ...] = (
    ("tokenizer_name", "gpt2"),
    ("max_new_tokens", 128),
    ("eos_token", "</s>"),
    ("pad_token", "<pad>"),
    ("bos_token_id", 1),
    ("use_cls_token", "true"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
    ("forced_bos_token", "en_XX"),
    ("image_token", "<image>"),
    ("think_token", "<think>"),
    ("token_budget", "10B"),
    ("tokens_per_batch", "0.5M"),
    ("token_embedding", "learned"),
    ("token_type_ids", "bert"),
    ("key_size", 64),
    ("query_key_norm", "rms"),
    ("sort_key", "length"),
    ("metric_key", "val/loss"),
    ("image_key", "jpg"),
    ("primary_key", "id"),
    ("key", "attention.wq"),
    ("keyframe", "12"),
    ("hotkey", "ctrl"),
    ("turkey", "tr"),
    ("monkey_patch", "yes"),
    ("pass_rate", "0.5"),
    ("two_pass", "yes"),
    ("compass", "n"),
    ("bypass_norm", "rms"),
    ("passthrough", "x"),
    ("pin_memory", "true"),
    ("spin", "up"),
    ("pattern", "*.txt"),
    ("data_commit", COMMIT),
    ("git_sha", COMMIT),
    ("revision", COMMIT),
    ("sha256", "ab" * 32),
    ("checksum", "md5:" + COMMIT[:32]),
    ("base_model", f"org/model@{COMMIT}"),
    ("run_name", "adamw-lr3e4-bs512-0fa90fa9"),
    ("uuid", "123e4567-e89b-12d3-a456-426614174000"),
    ("model", "meta-llama/Llama-3.1-8B-Instruct"),
    ("checkpoint", "gpt_MetaLlama31Instruct8BTurboFP8"),
    ("slurm_job_id", "12345678"),
    ("secret_santa_dataset", "santa"),
    ("author", "Jane Doe"),
    ("auth_type", "none"),
    ("session_name", "baseline-1"),
    ("credential_source", "env"),
    ("password_dataset", "rockyou"),
    ("cookiecutter", "x"),
    ("remote", "git@github.com:a/b.git"),
    ("path", "s3://bucket/key/prefix"),
    ("mail", "jane@example.com"),
    ("image", f"repo/img@sha256:{'ab' * 32}"),
    (
        "cmd",
        "python t.py --max-tokens 5 --key-dim 64 --tokenizer gpt2 --eos-token '</s>' --pass-through -p 80:80",
    ),
    ("notes", "the key idea: tokens pass through the secret sauce; the token is masked, the password is required"),
    ("docker", "docker run -u 1000:1000 -p 80:80 nvcr.io/nvidia/pytorch:24.01-py3"),
    ("scikit", "sk-learn-svm-rbf-kernel-v2"),
    ("num_secrets", 1_000_000),
    ("n_passwords", 14_344_391),
    ("password_length", 120_000),
    ("secret_level", 3),
    ("repo", "git@github.com:acme/experiments.git"),
    ("integrity", "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
    ("template", "cookiecutter-data-science"),
    ("tiny_model", "hf_internal_testing_tiny_random_bert_base_v1"),
    ("command", "python train.py --max-tokens 4096 --pass-through --key-chunk 128 --user-dim 64"),
    ("run_uuid", "550e8400-e29b-41d4-a716-446655440000"),
    ("container", "nvcr.io/nvidia/pytorch:25.01-py3@sha256:" + "4be1" * 16),
    ("passage_encoder", "facebook/dpr-ctx_encoder-single-nq-base"),
    ("optimizer_text", "adamw:beta2=0.95@wd=0.1"),
    ("experiment", "AKIAHABARA_v2"),
    ("salt_and_pepper", 0.05),
    ("bearing_fault", "inner_race_0.007"),
    ("seed_phrase_count", 120_000),
    ("signature", "(int, int) -> float"),
    ("login_node", "gpu-login-02"),
)
"""What looks like one and is none."""


def planted() -> tuple[dict[str, Any], list[str]]:
    """A config, notes and tags of them all, and the parts that no byte may have, in whatever case."""
    config: dict[str, Any] = {}
    for number, name in enumerate(BY_NAME):
        place = config
        for part in name.split(".")[:-1]:
            place = place.setdefault(part, {})
        place[name.split(".")[-1]] = f"hush-name{number}x"
    texts = {f"text {number}": text.format(f"hush9text{number}x") for number, text in enumerate(IN_TEXT)}
    config |= texts | {f"of {kind}": f"see {secret}" for kind, secret in BY_SHAPE.items()}
    config["argv"] = ["train.py", "--api-key", "hush-argv", "--lr", "1"]
    config["environment"] = [{"name": "HF_TOKEN", "value": "hush-pair"}, {"name": "THREADS", "value": "2"}]
    more = {
        "notes": "\n".join([*list(BY_SHAPE.values())[:12], "password: hush-note"]),
        "tags": [*list(BY_SHAPE.values())[12:], "token=hush-tag"],
    }
    parts = [
        "hush-",
        "hush9",
        BODY[:12],
        BODY[-12:],
        HEXES[:16],
        "IOSFODNN7",
        "QPZRY9X8",
        "MIIEow",
        "eyJzdWIi",
        "AgEIcHlw",
    ]
    return {"config": config, **more}, parts


def found_in(data: bytes, parts: list[str]) -> list[str]:
    """Which of the parts are among these bytes, whatever case they are in."""
    text = data.decode(errors="replace").lower()
    return [part for part in parts if part.lower() in text]
