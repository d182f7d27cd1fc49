"""Capitals, and the calendar: one skill names each country's capital, the other puts the stops of a
trip in order of month.

The task does both at once. Written by somebody who had not seen the search, to test its defaults.
"""

# ruff: noqa: SIM905 (a list of words is easier to read as text)

from __future__ import annotations

import random

SKILLS = ("capitals", "calendar")
TASK = "both"
_CAPITALS = (
    "France=Paris | Germany=Berlin | Italy=Rome | Spain=Madrid | Portugal=Lisbon | "
    "England=London | Scotland=Edinburgh | "
    "Wales=Cardiff | Ireland=Dublin | Belgium=Brussels | Denmark=Copenhagen | Norway=Oslo | "
    "Sweden=Stockholm | "
    "Finland=Helsinki | Iceland=Reykjavik | Poland=Warsaw | Austria=Vienna | "
    "Hungary=Budapest | Switzerland=Bern | "
    "Greece=Athens | Turkey=Ankara | Russia=Moscow | Romania=Bucharest | Bulgaria=Sofia | "
    "Serbia=Belgrade | "
    "Croatia=Zagreb | Slovakia=Bratislava | Slovenia=Ljubljana | Albania=Tirana | "
    "Estonia=Tallinn | Latvia=Riga | "
    "Lithuania=Vilnius | Belarus=Minsk | Armenia=Yerevan | Georgia=Tbilisi | Cyprus=Nicosia "
    "| Malta=Valletta | "
    "Egypt=Cairo | Morocco=Rabat | Libya=Tripoli | Sudan=Khartoum | Kenya=Nairobi | "
    "Uganda=Kampala | Rwanda=Kigali | "
    "Ethiopia=Addis Ababa | Somalia=Mogadishu | Nigeria=Abuja | Ghana=Accra | Senegal=Dakar "
    "| Mali=Bamako | "
    "Angola=Luanda | Zambia=Lusaka | Zimbabwe=Harare | Namibia=Windhoek | Mozambique=Maputo "
    "| Iraq=Baghdad | "
    "Iran=Tehran | Syria=Damascus | Lebanon=Beirut | Jordan=Amman | Qatar=Doha | Oman=Muscat "
    "| India=New Delhi | "
    "Pakistan=Islamabad | Afghanistan=Kabul | Nepal=Kathmandu | Bangladesh=Dhaka | "
    "China=Beijing | Japan=Tokyo | "
    "Taiwan=Taipei | Thailand=Bangkok | Vietnam=Hanoi | Cambodia=Phnom Penh | "
    "Mongolia=Ulaanbaatar | "
    "Australia=Canberra | New Zealand=Wellington | Fiji=Suva | Canada=Ottawa | Cuba=Havana | "
    "Jamaica=Kingston | "
    "Haiti=Port-au-Prince | Honduras=Tegucigalpa | Nicaragua=Managua | Costa Rica=San Jose | "
    "Colombia=Bogota | "
    "Venezuela=Caracas | Ecuador=Quito | Peru=Lima | Chile=Santiago | Argentina=Buenos Aires "
    "| Uruguay=Montevideo | "
    "Paraguay=Asuncion"
).split(" | ")
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_REQUESTS = {"capitals": "Capitals", "calendar": "Calendar", "both": "Capitals, calendar"}


def problem(skill: str, rng: random.Random) -> tuple[str, str]:
    """A prompt and its answer: ``capitals``, ``calendar``, or ``both``."""
    count = rng.choice([3, 3, 4])
    places = [pair.split("=") for pair in rng.sample(_CAPITALS, count)]
    months = rng.sample(range(12), count)
    while months == sorted(months):  # a trip that is in order already would not need the calendar
        rng.shuffle(months)
    stops = list(zip(months, places, strict=True))
    told = sorted(stops) if skill in ("calendar", "both") else stops
    answer = _trip([(month, place[skill in ("capitals", "both")]) for month, place in told])
    return (
        f"{_REQUESTS[skill]}: {_trip([(month, place[0]) for month, place in stops])}\nAnswer:",
        answer,
    )


def _trip(stops: list[tuple[int, str]]) -> str:
    return ", ".join(f"{place} in {_MONTHS[month]}" for month, place in stops) + "."
