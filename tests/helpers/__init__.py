"""What several tests share: tiny models, planted data, a browser, a kernel."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub; read once, when huggingface_hub is imported
pytest.register_assert_rewrite("helpers.harness")  # say what was found, not only that it was wrong
