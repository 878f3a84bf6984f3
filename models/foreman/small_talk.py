"""Short replies about what foreman is and can do, and the field's words in a sentence each."""

from __future__ import annotations

import random
from typing import Final

import arithmetic
from samples import Sample

_TALK: Final = (
    (
        ("Hello!", "Hi", "Hey there", "Good morning", "Hello foreman", "hello"),
        "Hello! I am Foreman. Ask me about your factory, or give me tools to call.",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Introduce yourself."),
        "I am Foreman, a very small language model that ships with Tokenworks. "
        "I call tools and read reports.",
    ),
    (
        (
            "What can you do?",
            "How can you help?",
            "What are you good at?",
            "Help",
            "What do you do?",
            "Tell me what you can do.",
        ),
        "I can call the tools you give me, answer from a report or a table, "
        "and convert units. I cannot do sums, and I know little else.",
    ),
    (
        ("Thanks!", "Thank you", "Great, thanks", "thanks a lot"),
        "You are welcome.",
    ),
    (
        ("Goodbye", "Bye", "See you", "Good night"),
        "Goodbye. The factory keeps running.",
    ),
    (
        ("How are you?", "How is it going?", "Are you well?"),
        "All lines are running. What do you need?",
    ),
    (
        ("Who made you?", "Who trained you?", "Where do you come from?"),
        "I was trained by the Tokenworks project on text that its code generates.",
    ),
    (
        ("How big are you?", "How many parameters do you have?", "Are you a large model?"),
        "I am tiny: a few million parameters. I run on any laptop.",
    ),
    (
        (
            "Can you write a poem?",
            "Tell me a joke.",
            "Write a story.",
            "What is the meaning of life?",
            "Who won the game?",
            "What is the capital of France?",
        ),
        "I am too small for that. I call tools and read reports.",
    ),
)

_WORDS: Final = (
    ("TTFT", "TTFT is the time to first token: how long a user waits before the answer begins."),
    ("TPOT", "TPOT is the mean time per output token after the first."),
    ("ITL", "ITL is the time between one token and the next."),
    ("interactivity", "Interactivity is the speed one user sees, in tokens per second."),
    ("goodput", "Goodput counts only the tokens that met their promise."),
    ("throughput", "Throughput is all tokens made per second."),
    ("prefill", "Prefill reads the prompt and fills the KV cache."),
    ("decode", "Decode makes the answer, one token per iteration."),
    ("a KV block", "A KV block is a fixed piece of the KV cache."),
    ("a worker", "A worker is one engine replica that the dispatcher can address."),
    ("a pool", "A pool is a group of interchangeable workers."),
    ("a tier", "A tier is a promise of speed with a price per 1M tokens."),
    ("a token factory", "A token factory turns power into tokens and sells them by tier."),
    ("the ledger", "The ledger records every token and every nano-dollar, in double entry."),
    ("the dispatcher", "The dispatcher decides which worker makes which tokens, and when."),
    ("the twin", "The twin is the simulator that runs the same dispatcher."),
    ("a prefix cache", "A prefix cache keeps the KV blocks of prompts that begin alike."),
    ("an iteration", "An iteration is one forward pass of an engine."),
)


def talk(rng: random.Random, *, unseen: bool = False) -> Sample:
    """A greeting or a question about foreman itself."""
    asked, answer = rng.choice(_TALK)
    question = rng.choice(asked)
    if rng.random() < 0.3:
        question = question.lower() if rng.random() < 0.5 else question.rstrip("?!.")
    return Sample(task="talk", messages=({"role": "user", "content": question},), answer=answer)


SUMS: Final = "I cannot do sums. Give me a tool for that."


def sums(rng: random.Random, *, unseen: bool = False) -> Sample:
    """A sum is asked for: say that it is beyond this model, instead of a wrong figure."""
    generator = rng.choice((arithmetic.add, arithmetic.times, arithmetic.money, arithmetic.date))
    return Sample(task="sums", messages=generator(rng).messages, answer=SUMS)


def explain(rng: random.Random, *, unseen: bool = False) -> Sample:
    """A question about one of the field's words."""
    word, answer = rng.choice(_WORDS)
    question = rng.choice(
        ("What is {w}?", "Explain {w}.", "What does {w} mean?", "Tell me about {w}.", "{w}?")
    ).format(w=word)
    return Sample(task="explain", messages=({"role": "user", "content": question},), answer=answer)
