"""The model's shape and its tokenizer: a small LLaVA of transformers' own parts."""

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ..questions import KINDS
from ..scenes import GRID, PATCH, SIZE, lay_out
from ..vocabulary import COLOR_NAMES, THINGS, WORDS

UNKNOWN, BOS, EOS, PAD, IMAGE = range(5)
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
VOCABULARY = 768
IMAGE_TOKENS = GRID * GRID
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set end = eos_token if message['role'] == 'assistant' else ' ' %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] + end }}{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] + end }}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: every name, sign word and colour is one token, and most plurals one more."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def _corpus() -> list[str]:
    rng = random.Random(1)
    names = [f" {word}" for word in (*(thing.name for thing in THINGS), *WORDS, *COLOR_NAMES)]
    regular = {thing.plural for thing in THINGS if thing.plural == thing.name + "s"}
    lines = names * 200
    for seed in range(2000):
        for ask in KINDS.values():
            if asked := ask(rng, lay_out(seed)):
                lines.append(f"USER: \n{asked[0]} ASSISTANT: {asked[1]}")
    # Without the regular plurals " cats" stays " cat" + "s", and a model that knows one knows both
    # (" bees" falls to the "es" of other words).
    return [
        " ".join(word for word in line.split(" ") if word.strip(".,?") not in regular)
        for line in lines
    ]


def make_model(vocabulary: int) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
        projection_dim=192,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
