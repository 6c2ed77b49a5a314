"""The folders of lcm's caches and config file, found without importing huggingface_hub."""

import os
from pathlib import Path


def hf_home() -> Path:
    """Return the folder of all Hugging Face caches: $HF_HOME, else the client's default."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{caches}/huggingface").expanduser()


def cache_dir() -> Path:
    """Return lcm's cache folder: $LCM_CACHE, else HF_HOME/lcm."""
    return Path(os.environ.get("LCM_CACHE") or hf_home() / "lcm").expanduser()


def user_config_file() -> Path:
    """Return the path of the user's config file, which need not exist."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "lcm" / "lcm.toml"
