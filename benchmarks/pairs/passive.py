"""The passive voice, and marks: one skill turns sentences into the passive, the other marks who
does what, and where.

The task does both at once. Written by somebody who had not seen the search, to test its defaults.
"""

# ruff: noqa: SIM905 (lists of words are easier to read as text)

from __future__ import annotations

import random

SKILLS = ("passive", "marks")
TASK = "both"
_VERBS = (
    "sell sells sold | take takes taken | write writes written | break breaks broken | "
    "choose chooses chosen | "
    "draw draws drawn | drive drives driven | eat eats eaten | feed feeds fed | find finds found | "
    "forget forgets forgotten | freeze freezes frozen | hide hides hidden | hold holds held "
    "| keep keeps kept | "
    "lead leads led | lose loses lost | make makes made | meet meets met | read reads read | "
    "ride rides ridden | "
    "see sees seen | shake shakes shaken | show shows shown | steal steals stolen | sweep "
    "sweeps swept | "
    "teach teaches taught | tear tears torn | throw throws thrown | wear wears worn | weave "
    "weaves woven | "
    "win wins won | bring brings brought | build builds built | burn burns burned | buy buys "
    "bought | "
    "catch catches caught | cut cuts cut | dig digs dug | bite bites bitten | blow blows "
    "blown | beat beats beaten | "
    "bend bends bent | bind binds bound | grow grows grown | know knows known | leave leaves "
    "left | lend lends lent | "
    "lift lifts lifted | paint paints painted | carry carries carried | clean cleans cleaned "
    "| copy copies copied | "
    "count counts counted | cover covers covered | repair repairs repaired | polish polishes "
    "polished | "
    "wash washes washed | push pushes pushed | pull pulls pulled | drop drops dropped | plan "
    "plans planned | "
    "wrap wraps wrapped | study studies studied | bury buries buried | watch watches watched | "
    "follow follows followed | fold folds folded | guard guards guarded | measure measures "
    "measured | "
    "move moves moved | open opens opened | order orders ordered | pack packs packed | plant "
    "plants planted | "
    "rent rents rented | save saves saved | share shares shared | smell smells smelled | "
    "spend spends spent | "
    "split splits split | spread spreads spread | strike strikes struck | swallow swallows "
    "swallowed | "
    "test tests tested | touch touches touched | train trains trained | visit visits visited "
    "| weigh weighs weighed | "
    "hit hits hit | hurt hurts hurt"
).split(" | ")
_DOERS = (
    "baker | farmer | nurse | teacher | pilot | king | queen | sailor | doctor | lawyer | "
    "painter | poet | thief | "
    "driver | miller | monk | singer | judge | soldier | student | tailor | waiter | widow | "
    "writer | hunter | guard | "
    "gardener | fisherman | butcher | captain | child | clerk | cook | dancer | engineer | "
    "girl | boy | grandmother | "
    "uncle | neighbor | actor | artist | athlete | barber | carpenter | chemist | coach | "
    "drummer | editor | florist | "
    "guest | giant | hermit | inspector | janitor | knight | librarian | mechanic | merchant "
    "| minister | musician | "
    "officer | owner | plumber | porter | priest | prince | professor | ranger | reporter | "
    "robot | scientist | "
    "sculptor | shepherd | spy | stranger | tourist | trader | traveler | visitor | witch | "
    "wizard | worker | cousin | "
    "duke"
).split(" | ")
_THINGS = (
    "apple apples | ball balls | basket baskets | bell bells | bird birds | blanket blankets "
    "| boat boats | "
    "book books | bottle bottles | box boxes | bridge bridges | brush brushes | camera "
    "cameras | candle candles | "
    "car cars | carpet carpets | chair chairs | clock clocks | coat coats | coin coins | cup "
    "cups | curtain curtains | "
    "desk desks | dish dishes | dog dogs | door doors | dress dresses | drum drums | egg "
    "eggs | engine engines | "
    "fence fences | flag flags | flower flowers | gate gates | glass glasses | goat goats | "
    "guitar guitars | "
    "hammer hammers | hat hats | horse horses | house houses | jar jars | key keys | knife "
    "knives | ladder ladders | "
    "lamp lamps | letter letters | map maps | mask masks | mirror mirrors | orange oranges | "
    "painting paintings | "
    "pear pears | pencil pencils | piano pianos | plate plates | pot pots | potato potatoes "
    "| ring rings | rope ropes | "
    "shell shells | ship ships | shirt shirts | shoe shoes | spoon spoons | statue statues | "
    "stone stones | "
    "table tables | tent tents | ticket tickets | toy toys | tree trees | umbrella umbrellas "
    "| vase vases | "
    "violin violins | wagon wagons | wall walls | watch watches | wheel wheels | window "
    "windows | leaf leaves | "
    "loaf loaves | shelf shelves | berry berries"
).split(" | ")
_LOOKS = (
    "old | new | red | blue | green | black | white | small | big | heavy | cheap | broken | "
    "clean | dirty | dry | "
    "empty | golden | silver | wooden | round | strange | tiny | warm | cold | wet | yellow "
    "| brown | huge | lovely | "
    "plain"
).split(" | ")
_PLACES = (
    "river | market | church | station | harbor | school | castle | forest | garden | "
    "kitchen | lake | museum | "
    "bakery | barn | beach | bank | cafe | cave | farm | field | hospital | hotel | library "
    "| mill | office | palace | "
    "park | prison | road | shop | square | stable | theater | tower | well | windmill | "
    "yard | zoo | bridge | border"
).split(" | ")
_WHERE = ("near", "behind", "at", "beside", "outside", "opposite")
_REQUESTS = {"passive": "Passive", "marks": "Mark", "both": "Passive, mark"}


def problem(skill: str, rng: random.Random) -> tuple[str, str]:
    """A prompt and its answer: ``passive``, ``marks``, or ``both``."""
    verb = rng.choice(_VERBS).split()
    doer = rng.choice(_DOERS)
    forms = rng.choice(_THINGS).split()
    place = f"{rng.choice(_WHERE)} the {rng.choice(_PLACES)}"
    plural = rng.random() < 0.5
    two = rng.random() < 0.4 and doer not in ("fisherman", "witch", "thief")
    tense = rng.choice(["now", "will", "must", "can"])
    doer = ("two children" if doer == "child" else f"two {doer}s") if two else f"the {doer}"
    thing = f"the {rng.choice(_LOOKS)} {forms[plural]}"
    act = f"{tense} {verb[0]}" if tense != "now" else verb[0] if two else verb[1]
    passive = (
        f"{tense} be {verb[2]}" if tense != "now" else f"{'are' if plural else 'is'} {verb[2]}"
    )
    answer = {
        "passive": f"{_capital(thing)} {passive} by {doer} {place}.",
        "marks": f"**{_capital(doer)}** {act} _{thing}_ ({place}).",
        "both": f"_{_capital(thing)}_ {passive} by **{doer}** ({place}).",
    }[skill]
    return f"{_REQUESTS[skill]}: {_capital(doer)} {act} {thing} {place}.\nAnswer:", answer


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
