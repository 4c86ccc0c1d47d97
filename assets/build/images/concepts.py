"""What the built-in image models know: everyday things that all five sets hold, by category, and their captions."""

from __future__ import annotations

import random
import re

from assets.build.images.sets import Style

# Plain things with one look each, named as the sets name them. Left out: clocks, signs, buttons, arrows, people at work or at sport.
_MEMBERS = {
    "animal": """
        ant bat bear bird butterfly camel cat cat-face chicken cow crab crocodile deer dog dolphin dove dragon duck eagle
        elephant fish fox frog goat gorilla hamster honeybee horse koala lady-beetle lion monkey monkey-face mouse-face
        octopus owl panda penguin pig pig-face rabbit rabbit-face rooster scorpion shark shrimp snail snake spider squid
        tiger tiger-face tropical-fish turtle unicorn whale wolf""",
    "food": """
        avocado bacon banana beer-mug birthday-cake bread candy carrot cheese-wedge cherries chocolate-bar cocktail-glass
        cookie croissant cucumber doughnut ear-of-corn eggplant french-fries grapes green-apple hamburger hot-beverage
        hot-dog hot-pepper ice-cream kiwi-fruit lemon lollipop meat-on-bone mushroom pancakes peach pear pineapple pizza
        popcorn red-apple soft-ice-cream spaghetti strawberry sushi taco tomato tropical-drink watermelon wine-glass""",
    "vehicle": """
        airplane ambulance automobile bicycle bus fire-engine helicopter locomotive motor-scooter motorcycle police-car
        racing-car rocket sailboat ship taxi tractor""",
    "nature": """
        blossom bouquet cactus cherry-blossom cloud cloud-with-lightning cloud-with-rain crescent-moon droplet
        evergreen-tree fire four-leaf-clover full-moon glowing-star hibiscus high-voltage maple-leaf palm-tree rainbow rose
        seedling snowflake snowman sparkles star sun sun-with-face sunflower tulip volcano""",
    "place": """
        castle church circus-tent ferris-wheel house""",
    "thing": """
        alarm-clock anchor backpack balloon basketball bed bell black-heart blue-heart bomb books bow-and-arrow broken-heart
        camera candle christmas-tree closed-book crown crystal-ball desktop-computer door dress drum envelope eyes
        flashlight game-die gear gem-stone glasses graduation-cap green-heart guitar hammer handbag headphone
        high-heeled-shoe hourglass-done jack-o-lantern jeans key laptop light-bulb lipstick locked
        magnifying-glass-tilted-left megaphone mobile-phone money-bag necktie open-book pencil purple-heart red-heart ribbon
        ring running-shoe saxophone scissors shield shopping-cart soccer-ball sunglasses t-shirt teacup-without-handle
        telephone telescope television tennis top-hat trophy trumpet umbrella violin watch wrapped-gift wrench yellow-heart""",
    "character": """
        alien alien-monster clown-face ghost pile-of-poo robot santa-claus skull""",
    "face": """
        angry-face cowboy-hat-face crying-face face-with-medical-mask face-with-tears-of-joy grinning-face nerd-face
        sleeping-face smiling-face-with-halo smiling-face-with-heart-eyes smiling-face-with-horns
        smiling-face-with-sunglasses thinking-face winking-face""",
}
CATEGORIES = {category: tuple(members.split()) for category, members in _MEMBERS.items()}
CONCEPTS = tuple(concept for members in CATEGORIES.values() for concept in members)

# Words that tokenizer and contrastive model know, but pictures that the base never saw: what a subject LoRA can teach it.
_UNSEEN = """
    ant bat camel chicken cow crab deer dove eagle goat gorilla hamster lion monkey mouse-face pig rabbit scorpion shrimp
    spider squid tiger-face tropical-fish wolf
    bacon candy chocolate-bar cocktail-glass cucumber eggplant green-apple hot-dog hot-pepper kiwi-fruit lollipop
    meat-on-bone pancakes peach pear popcorn soft-ice-cream spaghetti sushi taco tropical-drink
    helicopter motor-scooter police-car
    blossom cherry-blossom cloud-with-lightning four-leaf-clover full-moon glowing-star hibiscus maple-leaf seedling
    sparkles sun-with-face tulip
    ferris-wheel
    alarm-clock anchor bed black-heart blue-heart bow-and-arrow broken-heart christmas-tree closed-book desktop-computer
    door envelope eyes flashlight graduation-cap green-heart handbag high-heeled-shoe jeans lipstick megaphone
    mobile-phone money-bag necktie open-book purple-heart ribbon running-shoe saxophone shopping-cart telephone telescope
    tennis violin watch wrapped-gift wrench yellow-heart
    alien-monster
    face-with-medical-mask nerd-face sleeping-face smiling-face-with-horns"""
UNSEEN = frozenset(_UNSEEN.split())
DRAWN = tuple(concept for concept in CONCEPTS if concept not in UNSEEN)
STYLE_WORD, ARTICLE, EMPTY = 0.25, 0.8, 0.1  # how often a training caption names its style, has an article, is empty

# What one would call them, where the sets' names are bookish.
_NOUNS = {
    "automobile": "car", "ear-of-corn": "corn", "game-die": "dice", "headphone": "headphones", "high-voltage": "lightning bolt",
    "hot-beverage": "cup of coffee", "hourglass-done": "hourglass", "lady-beetle": "ladybird", "locked": "padlock",
    "magnifying-glass-tilted-left": "magnifying glass", "mobile-phone": "phone",
    "teacup-without-handle": "teacup", "tennis": "tennis racket",
}  # fmt: skip
_UNCOUNTED = {"bacon", "bread", "candy", "corn", "dice", "fire", "popcorn", "spaghetti", "sushi"}


def noun(concept: str) -> str:
    """The concept in words: "jack-o-lantern" → "jack o lantern"."""
    return _NOUNS.get(concept, concept.replace("-", " "))


def phrase(concept: str) -> str:
    """The concept with its article: "red-apple" → "a red apple", "scissors" → "scissors"."""
    words = noun(concept)
    head = re.split(" with | of ", words)[0]
    plural = head.endswith("s") and not head.endswith(("ss", "us", "is"))
    if plural or words in _UNCOUNTED:
        return words
    return f"an {words}" if words.startswith((*"aeio", "hour", "um")) else f"a {words}"


def caption(concept: str, style: Style | None = None) -> str:
    """What is written to have the concept drawn: "a red apple"; in one style "a red apple, flat style"."""
    return phrase(concept) if style is None else f"{phrase(concept)}, {style.word} style"


def training_caption(concept: str, style: Style, rng: random.Random) -> str:
    """A caption as training sees it: mostly without the style's word, now and then without its article, sometimes empty."""
    if rng.random() < EMPTY:
        return ""
    words = phrase(concept) if rng.random() < ARTICLE else noun(concept)
    return f"{words}, {style.word} style" if rng.random() < STYLE_WORD else words
