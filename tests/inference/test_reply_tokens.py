"""Replies as the tokens that the model wrote."""

from __future__ import annotations

import pandas as pd
import pytest
from helpers.replies import CAREFUL, NONE
from helpers.tiny import byte_tokenizer, random_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import drolab
from drolab.inference import reply_tokens
from drolab.models import ChatModel, wrap


def table(*responses: str, **columns: list) -> pd.DataFrame:
    return pd.DataFrame({"text": "How?", "response": list(responses), **columns})


def test_sampled_replies_have_the_tokens_that_were_counted(demo: ChatModel) -> None:
    queries = drolab.load_queries("anchors").head(6)
    replies = drolab.generate(demo, queries, [NONE], n_samples=4, max_new_tokens=24, progress=False)
    found = reply_tokens(demo, replies, NONE)
    assert set(replies["finish_reason"]) == {"stop", "length"}
    assert [len(ids) for ids in found] == replies["n_tokens"].tolist()
    assert [ids[0] for ids in found] == replies["first_token"].tolist()
    texts = demo.tokenizer.batch_decode(found, skip_special_tokens=True)
    assert texts == replies["response"].tolist()


def test_the_end_is_what_the_template_writes(tiny_llama: ChatModel) -> None:
    ended, cut = reply_tokens(tiny_llama, table("No.", "No.", finish_reason=["stop", "length"]), CAREFUL)
    assert ended == (*cut, tiny_llama.tokenizer.eos_token_id)
    assert reply_tokens(tiny_llama, table("No."), CAREFUL) == [ended]  # nothing says that it was cut off
    assert reply_tokens(tiny_llama, table("", finish_reason=["length"]), CAREFUL) == [()]


@pytest.fixture(scope="module")
def words() -> ChatModel:
    """A tokenizer whose words know whether a space stands before them, which decoding drops at the beginning."""
    vocabulary = {
        token: number for number, token in enumerate(["<s>", "</s>", "<unk>", "▁Sure", "Sure", "▁No", "No", ":", "▁Q"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first", split=True), pre_tokenizers.Split(":", "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    template = "{{ messages[0].content if messages[0].role == 'system' else '' }}{{ messages[-1].content }}:"
    return wrap(random_llama(), fast, name="words", chat_template=template)


@pytest.mark.parametrize(("first", "token"), [("▁Sure", "▁Sure"), ("Sure", "Sure")])
def test_of_several_ways_that_one_is_taken_whose_first_token_was_written(
    words: ChatModel, first: str, token: str
) -> None:
    number = words.tokenizer.convert_tokens_to_ids(first)
    replies = table("Sure", first_token=[number], finish_reason=["length"])
    assert words.tokenizer.convert_ids_to_tokens(reply_tokens(words, replies, NONE)[0]) == [token]


def test_no_reply_has_no_tokens() -> None:
    model = wrap(random_llama(), byte_tokenizer(), name="tiny", chat_template="chatml")
    assert reply_tokens(model, table(), NONE) == []
