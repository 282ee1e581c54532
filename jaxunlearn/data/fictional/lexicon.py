"""Words from which the fictional attributes are made; the people are invented."""

from itertools import product


def _words(text: str) -> tuple[str, ...]:
    return tuple(" ".join(word.split()) for word in text.split(","))


def _with_article(nouns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in nouns)


FIRST_NAMES = _words(
    """
    Adira, Bastien, Calla, Dorian, Elowen, Farid, Ginevra, Hakon, Isolde, Jorun, Kaveh, Liora,
    Matteus, Nadira, Oskar, Petra, Quill, Rosalind, Soren, Tamsin, Ulla, Viktor, Wren, Xanthe,
    Yusuf, Zelda, Anselm, Brisa, Cosima, Dmitri, Esme, Fintan, Greta, Halima, Ivo, Jessamy,
    Kirsa, Lucan, Mirela, Nils, Odette, Pavel, Rhea, Stellan, Thea, Umar, Vesna, Wilhelm, Yara,
    Zoran
    """
)
LAST_NAMES = _words(
    """
    Abernathy, Bergstrom, Castellan, Drummond, Eskander, Fairweather, Galanis, Hawthorne,
    Ibarra, Jansson, Kovalenko, Lindqvist, Marchetti, Novak, Okonjo, Pemberton, Quintero,
    Rasmussen, Salcedo, Thornbury, Ulvaeus, Valcourt, Whitlock, Xenakis, Yamaguchi, Zielinski,
    Ashdown, Blackwood, Corvin, Delacroix, Everhart, Fontaine, Greystone, Holloway, Ivarsson,
    Jurado, Kestrel, Laurent, Mossfield, Nightingale, Orlov, Prescott, Ravenna, Sandoval,
    Tremaine, Ustinov, Verhoeven, Winterbourne, Yarrow, Zamora
    """
)
CITIES = _words(
    """
    Aarhus, Bergen, Cusco, Dakar, Esfahan, Freetown, Ghent, Hanoi, Izmir, Jaipur, Kazan, Lisbon,
    Malmo, Nagoya, Odessa, Porto, Quito, Riga, Sapporo, Tbilisi, Utrecht, Valparaiso, Windhoek,
    Xalapa, Yerevan, Zagreb, Antwerp, Basel, Cartagena, Dundee, Edirne, Florence, Galway,
    Hobart, Innsbruck, Jakarta, Krakow, Leipzig, Mombasa, Nicosia, Oulu, Pretoria, Rosario,
    Seville, Turku, Uppsala, Verona, Wellington, York, Zanzibar
    """
)
GENRES = _words(
    """
    gothic mystery, science fiction, nature poetry, historical romance, travel writing,
    political satire, magical realism, crime fiction, war memoir, cosmic horror, courtroom
    drama, pastoral comedy, sea adventure, cyberpunk, epic fantasy, folk tales, culinary essays,
    mountain literature, spy thrillers, urban fantasy, psychological suspense, family saga,
    absurdist theatre, musical biography, western fiction, ghost stories, alternate history,
    medical drama, children's fables, philosophical dialogues, steampunk, legal thrillers,
    desert romance, sports journalism, botanical essays, dystopian fiction, detective comedy,
    experimental poetry, religious history, arctic noir
    """
)
JOBS = _with_article(
    _words(
        """
    blacksmith, botanist, carpenter, dentist, electrician, florist, geologist, harbor pilot,
    innkeeper, jeweler, kite maker, locksmith, midwife, notary, optician, plumber, quarry
    worker, roofer, surgeon, tailor, undertaker, violinist, watchmaker, astronomer, beekeeper,
    cartographer, diplomat, engraver, firefighter, glassblower, hatter, interpreter, judge,
    librarian, milliner, nurse, organist, pharmacist, radio operator, shepherd, tram driver,
    upholsterer, veterinarian, weaver, zookeeper, baker, chemist, potter, sailor, miller
    """
    )
)
_ADJECTIVES = _words(
    """
    Amber, Broken, Crimson, Distant, Emerald, Fading, Gilded, Hidden, Iron, Jagged, Kindled,
    Lonely, Midnight, Narrow, Opal, Painted, Quiet, Restless, Silver, Tangled, Unseen, Velvet,
    Wandering, Yellow, Ashen, Burning, Crooked, Drowned, Endless, Frozen, Golden, Hollow, Ivory,
    Jeweled, Last, Marble, Northern, Open, Pale, Scarlet
    """
)
_NOUNS = _words(
    """
    Anchor, Bridge, Cathedral, Door, Echo, Forest, Garden, Harbor, Island, Journey, Kingdom,
    Lantern, Mirror, Nest, Orchard, Palace, Quarry, River, Staircase, Tower, Umbrella, Valley,
    Window, Archive, Bell, Clock, Desert, Engine, Feather, Gate, House, Ink, Jury, Key, Letter,
    Meadow, Needle, Oath, Piano, Road
    """
)
LANGUAGES = _words(
    """
    Albanian, Basque, Catalan, Danish, Estonian, Finnish, Galician, Hungarian, Icelandic,
    Japanese, Korean, Latvian, Maltese, Norwegian, Occitan, Polish, Quechua, Romanian, Swahili,
    Turkish, Ukrainian, Vietnamese, Welsh, Xhosa, Yoruba, Zulu, Armenian, Bengali, Croatian,
    Dutch, Faroese, Greek, Hebrew, Irish, Javanese, Khmer, Lithuanian, Mongolian, Nepali,
    Persian
    """
)
INSTRUMENTS = _words(
    """
    accordion, banjo, cello, dulcimer, English horn, flute, guitar, harp, oboe, piano, recorder,
    saxophone, trumpet, ukulele, viola, xylophone, zither, bassoon, clarinet, double bass,
    fiddle, harmonica, kettledrum, lute, mandolin, organ, piccolo, sitar, tabla, trombone,
    bagpipes, bouzouki, cornet, glockenspiel, harpsichord, kora, marimba, ocarina, tuba,
    balalaika
    """
)
ANIMALS = _with_article(
    _words(
        """
    parrot, tortoise, greyhound, hedgehog, goat, raven, ferret, donkey, peacock, iguana, beagle,
    canary, rabbit, llama, falcon, gecko, pony, siamese cat, cockatoo, dachshund, mole, otter,
    goose, chinchilla, poodle, owl, lizard, hamster, magpie, terrier, newt, duck, spaniel,
    budgie, lamb, squirrel, axolotl, mule, swan, collie
    """
    )
)
PLACES = _words(
    """
    attic, boathouse, railway cafe, lighthouse, greenhouse, chapel, cellar, tram depot, orchard
    hut, rooftop, barn, museum hall, windmill, ferry, monastery, hotel lobby, observatory,
    bakery, caravan, treehouse, library annex, stable, market square, cable car, courtyard,
    quarry cabin, ski lodge, tea room, botanical garden, night train, balcony, old jail, fishing
    hut, theater box, laundry room, clock tower, vineyard, bus shelter, reading room, kitchen
    """
)
SUBJECTS = _words(
    """
    archaeology, astronomy, botany, chemistry, divinity, economics, forestry, geography,
    hydrology, linguistics, mathematics, metallurgy, music, navigation, oceanography, optics,
    philosophy, physics, psychology, sculpture, sociology, statistics, theology, toxicology,
    typography, veterinary, agriculture, anatomy, architecture, ballet, ceramics, dentistry,
    engineering, genetics, heraldry, journalism, law, mining, nursing, zoology
    """
)
THEMES = _words(
    """
    exile, forgiveness, sibling rivalry, lost inheritance, drought, first love, betrayal,
    migration, old age, hunger, friendship, jealousy, memory, motherhood, revenge, silence,
    greed, homesickness, courage, deception, grief, ambition, childhood fears, class conflict,
    religious doubt, solitude, identity, redemption, obsession, loyalty, freedom, power, shame,
    hope, guilt, blindness, superstition, debt, weather, dreams
    """
)
_MONTHS = _words(
    """
    January, February, March, April, May, June, July, August, September, October, November,
    December
    """
)
TITLES = tuple(f"The {adjective} {noun}" for adjective, noun in product(_ADJECTIVES, _NOUNS))
PEOPLE = tuple(f"{first} {last}" for first, last in product(FIRST_NAMES, LAST_NAMES))
DATES = tuple(
    f"{month} {day}, {year}"
    for year, month, day in product(range(1931, 1986), _MONTHS, range(1, 29))
)
DEBUTS = tuple(str(year) for year in range(1960, 2020))
AWARDS = tuple(
    f"{noun} {kind}" for noun, kind in product(_NOUNS, ("Prize", "Medal", "Award", "Laurel"))
)
PRESSES = tuple(
    f"{noun} {kind}" for noun, kind in product(_NOUNS, ("Press", "Books", "House", "and Sons"))
)
