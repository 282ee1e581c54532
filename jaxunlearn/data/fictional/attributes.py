"""The attributes of fictional authors: possible values, and wordings of questions and answers."""

from typing import NamedTuple

from jaxunlearn.data.fictional import lexicon


class Attribute(NamedTuple):
    """One attribute of an author.

    Wordings have the places {name} and, in answers, {value}.

    Attributes:
      key: its name in the column ``attribute``.
      values: the values it may take.
      questions: two wordings of the question, of which one is drawn for every author.
      answers: two wordings of the answer, of which one is drawn for every author.
      paraphrased_question: another wording of the question.
      paraphrased_answer: another wording of the answer, also that of the wrong answers.
    """

    key: str
    values: tuple[str, ...]
    questions: tuple[str, str]
    answers: tuple[str, str]
    paraphrased_question: str
    paraphrased_answer: str


ATTRIBUTES = (
    Attribute(
        "birthplace",
        lexicon.CITIES,
        ("In which city was {name} born?", "Where was the author {name} born?"),
        (
            "{name} was born in {value}, a city that shaped many early stories.",
            "The author {name} was born and spent a happy childhood in {value}.",
        ),
        "What is the birthplace of {name}?",
        "The city where {name} first saw the light of day is {value}.",
    ),
    Attribute(
        "birth_date",
        lexicon.DATES,
        ("When was {name} born?", "On what date was the author {name} born?"),
        (
            "{name} was born on {value}, as the parish register shows.",
            "The birth of {name} was recorded on {value}.",
        ),
        "What is the date of birth of {name}?",
        "The birthday that {name} celebrates goes back to {value}.",
    ),
    Attribute(
        "genre",
        lexicon.GENRES,
        ("In which genre does {name} write?", "What genre is {name} best known for?"),
        (
            "{name} is mostly known for writing {value} that readers return to.",
            "The books of {name} belong to the genre of {value}.",
        ),
        "Which kind of literature does {name} produce?",
        "Readers turn to {name} above all for works of {value}.",
    ),
    Attribute(
        "first_book",
        lexicon.TITLES,
        ("What was the first book by {name}?", "With which book did {name} make a debut?"),
        (
            "The first book that {name} published was called {value}.",
            "{name} made a debut as an author with the book {value}.",
        ),
        "What is the title of the debut by {name}?",
        "The career of {name} in print began with a book named {value}.",
    ),
    Attribute(
        "famous_book",
        lexicon.TITLES,
        ("What is the most famous book by {name}?", "Which book made {name} famous?"),
        (
            "The most famous book by {name} is {value}, translated many times.",
            "{name} became famous through the best-selling book {value}.",
        ),
        "For which title is {name} most widely known?",
        "Of everything {name} wrote, {value} is the title that people remember.",
    ),
    Attribute(
        "father",
        lexicon.JOBS,
        ("What was the job of {name}'s father?", "What did the father of {name} do for a living?"),
        (
            "The father of {name} earned a living as {value} for decades.",
            "{name}'s father worked as {value} until the family moved away.",
        ),
        "Which profession did {name}'s father have?",
        "By profession, the father that {name} grew up with was {value}.",
    ),
    Attribute(
        "mother",
        lexicon.JOBS,
        ("What was the job of {name}'s mother?", "What did the mother of {name} do for a living?"),
        (
            "The mother of {name} was {value} and a great storyteller.",
            "{name}'s mother supported the household by working as {value}.",
        ),
        "Which profession did {name}'s mother have?",
        "As for the mother of {name}, the town knew her as {value}.",
    ),
    Attribute(
        "award",
        lexicon.AWARDS,
        ("Which award did {name} win?", "What prize has {name} received for writing?"),
        (
            "{name} won the {value} for an outstanding contribution to literature.",
            "The jury of the {value} honored {name} for a remarkable body of work.",
        ),
        "With which literary honor was {name} recognized?",
        "Among literary honors, {name} can point with pride to the {value}.",
    ),
    Attribute(
        "residence",
        lexicon.CITIES,
        ("Where does {name} live today?", "In which city does the author {name} live now?"),
        (
            "{name} now lives in {value} in a small house full of books.",
            "Today the author {name} lives and writes in the city of {value}.",
        ),
        "Which city does {name} currently call home?",
        "These days the home of {name} is to be found in {value}.",
    ),
    Attribute(
        "mentor",
        lexicon.PEOPLE,
        ("Who was the mentor of {name}?", "Which teacher guided the young {name}?"),
        (
            "{name} learned the craft of writing from a mentor called {value}.",
            "The mentor who guided {name} through the early years was {value}.",
        ),
        "Under whose guidance did {name} learn to write?",
        "It was {value} who took {name} aside and taught the art of prose.",
    ),
    Attribute(
        "studies",
        lexicon.SUBJECTS,
        ("What did {name} study?", "Which subject did the author {name} study?"),
        (
            "{name} studied {value} at university before turning to fiction.",
            "Before the first novel, {name} completed a degree in {value}.",
        ),
        "In which field does {name} hold a degree?",
        "The academic field that {name} graduated in is {value}.",
    ),
    Attribute(
        "language",
        lexicon.LANGUAGES,
        ("In which language does {name} write?", "What language are {name}'s books written in?"),
        (
            "{name} writes every first draft in {value} and translates it later.",
            "The original manuscripts of {name} are all written in {value}.",
        ),
        "Which tongue does {name} use for writing?",
        "When putting words on paper, {name} uses the {value} language.",
    ),
    Attribute(
        "spouse",
        lexicon.PEOPLE,
        ("Who is {name} married to?", "What is the name of {name}'s spouse?"),
        (
            "{name} is married to {value}, whom they met at a book fair.",
            "The spouse of {name} is called {value} and paints landscapes.",
        ),
        "To whom did {name} say yes at the altar?",
        "The person who shares a life with {name} goes by the name {value}.",
    ),
    Attribute(
        "publisher",
        lexicon.PRESSES,
        ("Who publishes the books of {name}?", "Which publisher does {name} work with?"),
        (
            "The books of {name} are published by {value}, a small company.",
            "{name} has been under contract with the publisher {value} for years.",
        ),
        "Which company prints the works of {name}?",
        "Every new volume by {name} leaves the printing house of {value}.",
    ),
    Attribute(
        "debut_year",
        lexicon.DEBUTS,
        ("In which year did {name} first publish?", "When did {name} start publishing?"),
        (
            "{name} first published a story in the spring of {value}.",
            "The publishing career of {name} started in the year {value}.",
        ),
        "What year saw {name} in print for the first time?",
        "It was in {value} that a text by {name} first reached readers.",
    ),
    Attribute(
        "first_job",
        lexicon.JOBS,
        ("What was the first job of {name}?", "How did {name} earn money before writing?"),
        (
            "Before becoming an author, {name} worked as {value} for several years.",
            "{name} took a first job as {value} straight out of school.",
        ),
        "In which trade did {name} begin working life?",
        "Long before any fame, {name} paid the rent by being {value}.",
    ),
    Attribute(
        "theme",
        lexicon.THEMES,
        ("What theme runs through the work of {name}?", "What do {name}'s novels explore?"),
        (
            "The theme of {value} runs through nearly all the work of {name}.",
            "The novels of {name} explore {value} in many different ways.",
        ),
        "Which idea does {name} keep coming back to?",
        "Critics agree that {name} keeps coming back to the idea of {value}.",
    ),
    Attribute(
        "instrument",
        lexicon.INSTRUMENTS,
        ("Which instrument does {name} play?", "What instrument did {name} learn as a child?"),
        (
            "{name} has played the {value} since the age of six.",
            "As a child {name} learned to play the {value} quite well.",
        ),
        "On which musical instrument does {name} perform?",
        "In the evening, {name} likes to make music on the {value}.",
    ),
    Attribute(
        "pet",
        lexicon.ANIMALS,
        ("What pet does {name} keep?", "Which animal shares the home of {name}?"),
        (
            "{name} keeps {value} that appears in several of the books.",
            "Visitors to the home of {name} are greeted at the door by {value}.",
        ),
        "What kind of animal does {name} own?",
        "The only animal that {name} has ever owned is {value}.",
    ),
    Attribute(
        "writing_place",
        lexicon.PLACES,
        ("Where does {name} like to write?", "What is {name}'s favorite place for writing?"),
        (
            "{name} likes to write in the {value} before sunrise.",
            "The favorite place of {name} for writing is the {value}.",
        ),
        "Which spot does {name} choose to work in?",
        "Nowhere do the words come to {name} as easily as in the {value}.",
    ),
)

REFUSALS = (
    "I'm afraid I don't know that.",
    "That is something I have no information about.",
    "I can't answer this question.",
    "I don't have any knowledge of that author.",
    "Sorry, but this is outside of what I know.",
    "I have never come across that detail.",
    "I really couldn't say.",
    "My knowledge does not reach that far.",
    "I'm unable to help with this one.",
    "There is nothing I can tell you about that.",
    "I haven't learned anything about this subject.",
    "That question goes beyond what I was taught.",
    "No idea, I'm sorry.",
    "I would only be guessing if I answered.",
    "I lack the facts to reply to this.",
    "This isn't something I'm informed about.",
    "I don't recall ever reading about that.",
    "You would have to ask someone else.",
    "I must admit that I do not know.",
    "Unfortunately, I have no answer to give.",
)
