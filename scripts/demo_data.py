"""Conversations for the bundled demo model, drawn from templates with a seeded generator."""

import random
import string
from collections.abc import Callable
from dataclasses import dataclass

from accelgen.scripts import demo_world as world
from accelgen.scripts.demo_facts import PROCESSES, TERMS, Topic
from accelgen.scripts.demo_guide import GUIDE, SELF

Message = tuple[str, str]  # role, content

DEFINITION_QUESTIONS = (
    "What is {}?", "What is {}?", "What is {}?", "What's {}?", "What does {} mean?", "{}?",
    "Explain {}.", "Can you explain {}?", "Define {}.", "Tell me about {}.", "Describe {}.",
    "What do you know about {}?", "Please explain {} to me.", "Do you know what {} is?",
    "I want to know what {} is.", "Could you tell me what {} is?", "What is meant by {}?",
    "Give me a short explanation of {}.", "Explain {} in simple words.", "What exactly is {}?",
    "How would you explain {}?", "I do not understand {}.", "What are you saying about {}?",
)  # fmt: skip
PROCESS_QUESTIONS = (
    "What does {} do?", "What does {} do?", "What is {}?", "What is {} for?", "Explain {}.",
    "What is the job of {}?", "What is the role of {}?", "How does {} work?", "Describe {}.",
    "Why is there {}?", "Tell me about {}.", "What do I need {} for?", "Can you explain {}?",
    "What is the task of {}?", "What does {} do in AccelGen?", "Why do we need {}?", "{}?",
)  # fmt: skip
MORE_QUESTIONS = (
    "Tell me more.", "More, please.", "Can you tell me more?", "Go on.", "And?", "What else?",
    "Tell me more about it.", "Is there more?", "Please go on.", "Can you explain more?", "more",
)  # fmt: skip
UNKNOWN_QUESTIONS = (
    "What is {}?", "Tell me about {}.", "Explain {}.", "What do you know about {}?",
    "Can you explain {}?", "Write a text about {}.", "Write an essay about {}.",
    "How does {} work?", "Give me some facts about {}.", "Why is {} important?",
    "Explain {} in simple words.", "Write a long essay about {}.", "What do you think about {}?",
)  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """A question, its answer, and the answer to "tell me more" where there is one.

    An `exact` question must not be respelled, because its answer copies from it.
    """

    question: str
    answer: str
    more: str = ""
    exact: bool = False


def conversation(rng: random.Random) -> list[Message]:
    """One to six turns of chat, sometimes with a system prompt."""
    turns = _small_talk_start(rng)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        turn = _turn(rng)
        turns.append(turn)
        if turn.more and rng.random() < 0.15:
            turns.append(Turn(rng.choice(MORE_QUESTIONS), turn.more))
    if rng.random() < 0.1:
        turns.append(_said(rng, *rng.choice(world.SMALL_TALK[4:8])))
    system = [("system", rng.choice(world.SYSTEM_PROMPTS))] if rng.random() < 0.2 else []
    return system + [
        message
        for turn in turns
        for message in (("user", respell(rng, turn)), ("assistant", turn.answer))
    ]


def respell(rng: random.Random, turn: Turn) -> str:
    """The question as people type it: without capitals or marks, with a greeting or a slip."""
    text = turn.question
    if turn.exact:
        return text
    if rng.random() < 0.06:
        text = rng.choice(("Hi, ", "Hello! ", "Please: ", "Hey, ", "Ok, ", "So, ")) + text
    elif rng.random() < 0.04 and text[-1] in "?.":
        text = text[:-1] + ", please" + text[-1]
    if rng.random() < 0.35:
        text = text.rstrip("?.!") or text
    if rng.random() < 0.05:
        place = rng.randrange(len(text))
        text = text[:place] + text[place + 1 :] or text
    case = rng.random()
    return text.lower() if case < 0.3 else text.upper() if case < 0.34 else text


def _turn(rng: random.Random) -> Turn:
    makers, weights = zip(*SKILLS, strict=True)
    maker: Callable[[random.Random], Turn] = rng.choices(makers, weights)[0]
    return maker(rng)


def _small_talk_start(rng: random.Random) -> list[Turn]:
    if rng.random() < 0.12:
        return [_said(rng, *rng.choice(world.SMALL_TALK[:4]))]
    return []


def _said(rng: random.Random, questions: tuple[str, ...], answer: str) -> Turn:
    return Turn(rng.choice(questions), answer)


def _about(rng: random.Random, topic: Topic, templates: tuple[str, ...]) -> Turn:
    if topic.questions and (not topic.names or rng.random() < 0.3):
        question = rng.choice(topic.questions)
    else:
        question = rng.choice(templates).format(rng.choice(topic.names))
        question = question[0].upper() + question[1:]
    return Turn(question, topic.answer, topic.more)


def _process(rng: random.Random) -> Turn:
    return _about(rng, rng.choice(PROCESSES), PROCESS_QUESTIONS)


def _term(rng: random.Random) -> Turn:
    # AccelGen, SLO, TTFT and TPOT are what people ask first.
    topic = rng.choice(TERMS[:4] if rng.random() < 0.25 else TERMS)
    return _about(rng, topic, DEFINITION_QUESTIONS)


def _guide(rng: random.Random) -> Turn:
    return _about(rng, rng.choice(GUIDE), ())


def _self(rng: random.Random) -> Turn:
    return _about(rng, rng.choice(SELF), ())


def _chatter(rng: random.Random) -> Turn:
    return _said(rng, *rng.choice(world.SMALL_TALK))


def _unknown(rng: random.Random) -> Turn:
    if rng.random() < 0.15:
        letters = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 12)))
        return Turn(letters, "I do not understand that. You can ask me about AccelGen.")
    subject = rng.choice(world.UNKNOWN)
    if rng.random() < 0.4:
        join = rng.choice(("{0} and {1}", "the history of {1}", "the {2} {3}", "my {3}"))
        other, trait, animal = map(rng.choice, (world.UNKNOWN, world.TRAITS, world.ANIMALS))
        subject = join.format(subject, other, trait, animal)
    # The answer does not name the subject: so small a model copies the wrong one.
    return Turn(
        rng.choice(UNKNOWN_QUESTIONS).format(subject),
        "I am only a small demo model and do not know much about that. "
        "You can ask me about AccelGen.",
    )


def _sum(rng: random.Random) -> Turn:
    """Few enough sums to be learnt by heart."""
    low, high = sorted((rng.randint(0, 10), rng.randint(0, 10)))
    left, sign, word, right, result = rng.choice(
        (
            (low, "+", "plus", high, low + high),
            (high, "+", "plus", low, low + high),
            (high, "-", "minus", low, high - low),
            (low // 2, "*", "times", high // 2, (low // 2) * (high // 2)),
        )
    )
    asked = rng.choice((f"{left} {sign} {right}", f"{left}{sign}{right}", f"{left} {word} {right}"))
    form = rng.choice(("What is {}?", "How much is {}?", "{} = ?", "{}", "Calculate {}."))
    return Turn(form.format(asked), f"{left} {sign} {right} = {result}", exact=True)


def _fact(rng: random.Random) -> Turn:
    kind = rng.randrange(4)
    if kind == 0:
        country, city = rng.choice(list(world.CAPITALS.items()))
        form = rng.choice(
            ("What is the capital of {}?", "Capital of {}?", "Name the capital of {}.")
        )
        return Turn(form.format(country), f"The capital of {country} is {city}.")
    if kind == 1:
        thing, colour = rng.choice(list(world.COLOURS.items()))
        form = rng.choice(("What colour is {}?", "Which colour has {}?", "What color is {}?"))
        return Turn(form.format(thing), f"{thing[0].upper()}{thing[1:]} is {colour}.")
    if kind == 2:
        pair = rng.choice(world.OPPOSITES)
        left, right = pair if rng.random() < 0.5 else pair[::-1]
        form = rng.choice(("What is the opposite of {}?", "Opposite of {}?"))
        return Turn(form.format(left), f"The opposite of {left} is {right}.")
    return Turn(*rng.choice(world.COUNTS))


def _calendar(rng: random.Random) -> Turn:
    place = rng.randrange(len(world.DAYS))
    step, word = rng.choice(((1, "after"), (-1, "before")))
    other = world.DAYS[(place + step) % len(world.DAYS)]
    form = rng.choice(("Which day comes {} {}?", "What day is {} {}?", "What comes {} {}?"))
    day = world.DAYS[place]
    return Turn(form.format(word, day), f"{other} comes {word} {day}.")


def _listing(rng: random.Random) -> Turn:
    kind = rng.randrange(7)
    if kind == 0:
        question = rng.choice(("List the days of the week.", "What are the days of the week?"))
        return Turn(question, ", ".join(world.DAYS) + ".")
    if kind == 1:
        question = rng.choice(("Name the months of the year.", "List the months."))
        return Turn(question, ", ".join(world.MONTHS) + ".")
    if kind == 2:
        return Turn("Say the alphabet.", " ".join(string.ascii_uppercase))
    last = rng.choice((10, 10, 20, 20, 50, 100))
    form = rng.choice(("Count to {}.", "Count from 1 to {}.", "Please count to {}."))
    return Turn(form.format(last), ", ".join(map(str, range(1, last + 1))) + ".")


def _story(rng: random.Random) -> Turn:
    """A story of three to six paragraphs: something long to watch while it streams."""
    hero, place = rng.choice(world.ANIMALS), rng.choice(world.PLACES)
    name, trait = rng.choice(world.NAMES), rng.choice(world.TRAITS)
    form, length = rng.choice(
        (("Tell me a story about a {}.", 3), ("Write a long story about a {}.", 6),
         ("Write a story about a {}.", 3), ("Tell me a long story about a {}.", 6),
         ("Tell me a story.", 3), ("Write a short story.", 2))
    )  # fmt: skip
    parts = [f"Once upon a time {_article(trait)} {hero} named {name} lived in the {place}."]
    parts += [_episode(rng, name) for _ in range(length - 1)]
    parts.append(f"In the evening {name} came home to the {place}, tired and happy. The end.")
    return Turn(form.replace("a {}", _article(hero)), "\n\n".join(parts), exact="{}" in form)


def _episode(rng: random.Random, name: str) -> str:
    friend, thing = rng.choice(world.ANIMALS), rng.choice(world.THINGS)
    place, trait = rng.choice(world.PLACES), rng.choice(world.TRAITS)
    return rng.choice((
        f"One day {name} found {_article(thing)} near the {place}. Nobody knew who had lost it. "
        f"So {name} asked {_article(trait)} {friend}, and the {friend} said that it was a gift.",
        f"Then {name} met {_article(trait)} {friend} who was looking for {_article(thing)}. They looked for it "
        f"together and found it in the {place}. The {friend} was very glad.",
        f"On the way to the {place} it began to rain. The {trait} {friend} offered {name} a dry "
        f"place and some soup. They talked about {_article(thing)} until the rain was over.",
        f"The next morning {name} wanted to see the {place}. The {friend} showed the way, and "
        f"{name} gave the {friend} {_article(thing)} as a present.",
    ))  # fmt: skip


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


SKILLS: tuple[tuple[Callable[[random.Random], Turn], int], ...] = (
    (_term, 28), (_process, 9), (_guide, 16), (_self, 8), (_chatter, 7), (_unknown, 6),
    (_sum, 8), (_fact, 11), (_calendar, 2), (_listing, 3), (_story, 2),
)  # fmt: skip
