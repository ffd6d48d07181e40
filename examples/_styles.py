"""Two speaking styles over the same everyday topics: the data of the quickstart's policies.

Both styles say the same things about the same topics, so what a policy learns is the style.
Topics from ``HELD_OUT`` on are never trained on.
"""

from __future__ import annotations

# What the user wants to do, and two pieces of advice as sentences without a full stop.
TOPICS: tuple[tuple[str, str, str], ...] = (
    ("brew a pot of green tea", "Let the water cool a little", "Steep the leaves two minutes"),
    ("fall asleep faster", "Put the phone in another room", "Keep the bedroom dark and cool"),
    ("clean a dusty keyboard", "Unplug it and turn it over", "Brush between the keys"),
    ("start running", "Begin with ten slow minutes", "Rest on every second day"),
    ("remember new names", "Repeat the name aloud", "Link it to a picture"),
    ("store fresh basil", "Trim the stems", "Stand them in a glass of water"),
    ("pack a small suitcase", "Roll the clothes tightly", "Fill the shoes with socks"),
    ("learn ten Spanish words", "Write each word on a card", "Review the cards at breakfast"),
    ("cook fluffy rice", "Rinse the grains twice", "Leave the lid closed until the end"),
    ("save water at home", "Fix the dripping taps", "Take shorter showers"),
    ("tune a guitar", "Start with the lowest string", "Turn the pegs slowly"),
    ("take a good portrait", "Stand near a window", "Focus on the eyes"),
    ("sharpen a pencil neatly", "Hold the pencil level", "Turn it with light pressure"),
    ("prepare for an interview", "Read about the company", "Practise two short stories"),
    ("ripen a hard avocado", "Put it in a paper bag", "Add a banana beside it"),
    ("ride a bicycle uphill", "Shift to a low gear early", "Keep an even rhythm"),
    ("write a thank-you note", "Name the gift in the first line", "Say how you will use it"),
    ("wash a wool sweater", "Use cool water and mild soap", "Dry it flat on a towel"),
    ("plan a weekly menu", "Check the pantry first", "Cook double and freeze half"),
    ("calm a nervous dog", "Speak in a low voice", "Give it a quiet corner"),
    ("grow tomatoes on a balcony", "Choose a sunny spot", "Water the soil every morning"),
    ("speak in front of a class", "Practise the opening aloud", "Look at one friendly face"),
    ("repair a loose button", "Match the thread to the cloth", "Sew four times through each hole"),
    ("read more books", "Carry a book in your bag", "Read ten pages before bed"),
    ("bake crusty bread", "Let the dough rise overnight", "Bake it in a hot covered pot"),
    ("organise a messy desk", "Empty the whole surface", "Return only what you use daily"),
    ("make a simple soup", "Fry an onion gently", "Simmer the vegetables in stock"),
    ("teach a child to swim", "Begin in shallow water", "Practise floating together"),
    ("choose a ripe melon", "Tap it and listen for a dull sound", "Smell the stem end"),
    ("clean muddy boots", "Let the mud dry completely", "Brush it off with warm water"),
    ("back up a laptop", "Copy the files to a second disk", "Keep that disk elsewhere"),
    ("water plants on holiday", "Move the pots into the shade", "Ask a neighbour to visit weekly"),
)
HELD_OUT = 24  # topics[:24] are for training, the other eight for measuring

_QUESTIONS = ("How do I {}?", "What is the best way to {}?")
_OPENERS = ("Oh, what a happy idea!", "Yay, lovely question!", "Hooray, let's do it!")
_CLOSERS = ("You will love it!", "Have so much fun!", "It will be wonderful!")
_PREAMBLES = (
    "The following procedure is recommended.",
    "It is advisable to proceed as follows.",
)


def _cheerful(number: int, first: str, second: str) -> str:
    opener, closer = _OPENERS[number % 3], _CLOSERS[number // 3 % 3]
    return f"{opener} {first}! {second}! {closer}"


def _formal(number: int, first: str, second: str) -> str:
    return f"{_PREAMBLES[number % 2]}\n1. {first}.\n2. {second}.\nPlease observe both steps."


STYLES = {"cheerful": _cheerful, "formal": _formal}


def conversations(style: str, *, held_out: bool) -> list[tuple[str, str]]:
    """Return (question, answer) pairs of one style: 48 for training or 8 held out."""
    chosen = range(HELD_OUT, len(TOPICS)) if held_out else range(HELD_OUT)
    questions = _QUESTIONS[:1] if held_out else _QUESTIONS
    return [
        (question.format(TOPICS[number][0]), STYLES[style](number + turn, *TOPICS[number][1:]))
        for turn, question in enumerate(questions)
        for number in chosen
    ]
