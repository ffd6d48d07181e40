"""Four kinds of real checkpoints: how each is had, fine-tuned in seconds, and measured.

Each is measured by the library that its users load it with, on data that was not trained on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import _base
import _packages
import numpy as np
import torch
import transformers
from _model import batches, load, mean_loss, save
from _packages import fail
from _styles import HELD_OUT, STYLES, TOPICS, conversations
from _voices import RATE, VOICES, spoken, word_errors
from PIL import Image
from sentence_transformers import SentenceTransformer
from sklearn.datasets import load_digits

SEED = 0


def descend(
    model: torch.nn.Module, rate: float, losses: Iterator[Callable[[], torch.Tensor]]
) -> None:
    """Take a step of AdamW for each loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    model.train()
    for number, loss in enumerate(losses):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (number + 1) / 4)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()


def chosen(rows: list, size: int, steps: int) -> Iterator[list]:
    """Yield shuffled batches."""
    draw = random.Random(SEED)
    for _ in range(steps):
        yield draw.sample(rows, size)


class Encoder:
    """A sentence encoder; fine-tuned to lay a question beside its answer in one style."""

    library, wrap = "sentence-transformers", "ties"
    measure = "cosine of a question and its answer, minus that of the other answers"
    tasks = tuple(STYLES)

    def __init__(self, name: str, make: Callable[[Path, Path], None]) -> None:
        self.name, self.make = name, make

    def tune(self, base: Path, style: str, part: Path) -> None:
        model = SentenceTransformer(str(base), device="cpu")

        def loss(pairs: list[tuple[str, str]]) -> torch.Tensor:
            questions, answers = (self._encoded(model, texts) for texts in zip(*pairs, strict=True))
            scores = 20 * questions @ answers.T
            return torch.nn.functional.cross_entropy(scores, torch.arange(len(pairs)))

        # One question about each topic: another answer about it would not be a wrong one.
        pairs = conversations(style, held_out=False)[:HELD_OUT]
        groups = chosen(pairs, size=8, steps=8)
        descend(model, 2e-5, ((lambda group=group: loss(group)) for group in groups))
        model.save(str(part), create_model_card=False)

    @staticmethod
    def _encoded(model: SentenceTransformer, texts: tuple[str, ...]) -> torch.Tensor:
        return model(model.preprocess(list(texts)))["sentence_embedding"]

    def measured(self, folder: Path) -> tuple[list[str], str]:
        model = SentenceTransformer(str(folder), device="cpu")
        numbers = []
        for style in self.tasks:
            questions, answers = zip(*conversations(style, held_out=True), strict=True)
            cosines = model.encode(list(questions)) @ model.encode(list(answers)).T
            own = np.eye(len(cosines), dtype=bool)
            numbers.append(f"{cosines[own].mean() - cosines[~own].mean():.3f}")
        question, answer = conversations("formal", held_out=True)[0]
        cosine = float(np.dot(*model.encode([question, answer])))
        return numbers, f"{cosine:.3f} between {question!r} and its formal answer"


class Writer:
    """A language model; fine-tuned to answer in one style."""

    name, library, wrap = (
        "SmolLM2-135M-Instruct",
        "transformers, text-generation",
        "task_arithmetic",
    )
    measure = "perplexity of unseen answers"
    tasks = tuple(STYLES)

    def make(self, _downloads: Path, part: Path) -> None:
        _base.base_from_wheel(part)

    def tune(self, base: Path, style: str, part: Path) -> None:
        model, tokenizer = load(base)
        pairs = conversations(style, held_out=False)
        groups = (batches(tokenizer, group)[0] for group in chosen(pairs, size=4, steps=8))
        descend(model, 4e-5, ((lambda group=group: model(**group).loss) for group in groups))
        save(model.to(torch.bfloat16), tokenizer, part)

    def measured(self, folder: Path) -> tuple[list[str], str]:
        model, tokenizer = load(folder)
        data = [batches(tokenizer, conversations(style, held_out=True)) for style in self.tasks]
        numbers = [f"{math.exp(mean_loss(model, each)):.1f}" for each in data]
        writes = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
        chat = [{"role": "user", "content": "How do I keep a houseplant healthy?"}]
        text = writes(chat, max_new_tokens=24, do_sample=False)[0]["generated_text"]
        return numbers, " ".join(text[-1]["content"].split())


class Listener:
    """A Whisper; fine-tuned to one voice of espeak-ng."""

    name, library, wrap = "whisper-tiny.en", "transformers, speech recognition", "task_arithmetic"
    measure = "words wrong, of unseen sentences"
    tasks = tuple(VOICES)

    def make(self, downloads: Path, part: Path) -> None:
        _packages.whisper(downloads, part)

    @staticmethod
    def _sentences(*, held_out: bool) -> list[str]:
        topics = TOPICS[HELD_OUT : HELD_OUT + 4] if held_out else TOPICS[:HELD_OUT]
        return [f"{first}. {second}." for _, first, second in topics]

    def tune(self, base: Path, voice: str, part: Path) -> None:
        model = transformers.WhisperForConditionalGeneration.from_pretrained(base)
        processor = transformers.WhisperProcessor.from_pretrained(base)

        def loss(sentences: list[str]) -> torch.Tensor:
            sounds = [spoken(sentence, voice) for sentence in sentences]
            inputs = processor(sounds, sampling_rate=RATE, return_tensors="pt")
            # Behind the first token, which the model is given.
            rows = [torch.tensor(processor.tokenizer(text).input_ids[1:]) for text in sentences]
            labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
            return model(input_features=inputs.input_features, labels=labels).loss

        groups = chosen(self._sentences(held_out=False), size=1, steps=8)  # each is heard for 30 s
        descend(model, 2e-5, ((lambda group=group: loss(group)) for group in groups))
        model.save_pretrained(part)
        processor.save_pretrained(part)

    def measured(self, folder: Path) -> tuple[list[str], str]:
        hears = transformers.pipeline("automatic-speech-recognition", model=str(folder))
        sentences, numbers, heard = self._sentences(held_out=True), [], [""]
        for voice in self.tasks:
            sounds = [spoken(sentence, voice) for sentence in sentences]
            texts = hears([{"raw": sound, "sampling_rate": RATE} for sound in sounds])
            heard = [text["text"].strip() for text in texts]
            numbers.append(f"{word_errors(heard, sentences):.0%}")
        return numbers, heard[0]


class Seer:
    """A vision transformer of 6 blocks, trained here on scikit-learn's digits from nothing.

    It is fine-tuned to digits of a quarter of the contrast, or of another place in the image.
    """

    name, library, wrap = "ViT, trained here", "transformers, image-classification", "ties"
    measure = "digits recognised, of 297 unseen"
    tasks = ("faint", "shifted")

    @staticmethod
    def _digits(kind: str, *, held_out: bool) -> list[tuple[Image.Image, int]]:
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(SEED).permutation(len(labels))
        pixels = (images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        if kind == "faint":
            pixels = pixels // 4
        elif kind == "shifted":
            pixels = np.roll(pixels, (2, 2), axis=(1, 2))
        rows = order[1500:] if held_out else order[:1500]
        return [(Image.fromarray(pixels[row]).convert("RGB"), int(labels[row])) for row in rows]

    def _train(self, model, processor, kind: str, rate: float, steps: int) -> None:
        images, labels = zip(*self._digits(kind, held_out=False), strict=True)
        inputs = processor(list(images), return_tensors="pt").pixel_values
        answers = torch.tensor(labels)
        groups = chosen(list(range(len(labels))), size=64, steps=steps)
        losses = (
            (lambda rows=rows: model(pixel_values=inputs[rows], labels=answers[rows]).loss)
            for rows in groups
        )
        descend(model, rate, losses)

    def make(self, _downloads: Path, part: Path) -> None:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6}
        sizes |= {"num_attention_heads": 4, "image_size": 16, "patch_size": 4}
        digits = {str(digit): digit for digit in range(10)}
        names = {digit: name for name, digit in digits.items()}
        torch.manual_seed(SEED)
        config = transformers.ViTConfig(**sizes, label2id=digits, id2label=names)
        model = transformers.ViTForImageClassification(config)
        processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
        self._train(model, processor, "as they are", 1e-3, 500)
        model.save_pretrained(part)
        processor.save_pretrained(part)

    def tune(self, base: Path, kind: str, part: Path) -> None:
        model = transformers.ViTForImageClassification.from_pretrained(base)
        processor = transformers.ViTImageProcessorPil.from_pretrained(base)
        self._train(model, processor, kind, 3e-4, 100)
        model.save_pretrained(part)
        processor.save_pretrained(part)

    def measured(self, folder: Path) -> tuple[list[str], str]:
        sees = transformers.pipeline("image-classification", model=str(folder), top_k=1)
        numbers = []
        for kind in self.tasks:
            images, labels = zip(*self._digits(kind, held_out=True), strict=True)
            answers = [int(answer[0]["label"]) for answer in sees(list(images), batch_size=64)]
            numbers.append(f"{np.mean(np.equal(answers, labels)):.0%}")
        images, labels = zip(*self._digits("as they are", held_out=True), strict=True)
        answers = [int(answer[0]["label"]) for answer in sees(list(images), batch_size=64)]
        return numbers, f"{np.mean(np.equal(answers, labels)):.0%} of the digits as they are"


CHECKPOINTS = (
    Encoder("all-mpnet-base-v2", _packages.mpnet),
    Encoder("all-MiniLM-L6-v2", _packages.minilm),
    Writer(),
    Listener(),
    Seer(),
)


def of_names(names: list[str]) -> list:
    """Return the checkpoints of some names, all where there are none.

    Raises:
        SystemExit: there is none of that name.
    """
    own = {checkpoint.name: checkpoint for checkpoint in CHECKPOINTS}
    for name in names:
        if name not in own:
            raise fail(f"no checkpoint is called {name!r}, wanted some of {', '.join(own)}.")
    return [own[name] for name in names] or list(CHECKPOINTS)
