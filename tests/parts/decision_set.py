# SPDX-License-Identifier: Apache-2.0
"""Short texts with a question of each kind, and the answer that most people would give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from inference_bridge import Choice, Noul, Score


class Item(NamedTuple):
    """A text, a question about it, and the option that is right."""

    kind: str
    text: str
    question: Noul | Choice | Score
    right: str


_URGENT = Noul("Does this message need an answer today?")
_POSITIVE = Noul("Is the writer satisfied?")
_TEAM = Choice(
    {"billing": "payments and invoices", "support": "faults and bugs", "sales": "orders and offers"}, "Which team?"
)
_LANGUAGE = Choice({"English": None, "French": None, "German": None, "Spanish": None}, "Which language is it in?")
_ANGER = Score(["calm", "annoyed", "furious"], "How angry is the writer?")

_NOUL: tuple[tuple[Noul, str, str], ...] = (
    (_URGENT, "true", "Production is down and nobody answers the phone!"),
    (_URGENT, "true", "The water has been coming through the ceiling since noon. Please send someone now."),
    (_URGENT, "true", "My flight leaves in three hours and the ticket has the wrong name."),
    (_URGENT, "true", "The payment must reach us before midnight or the contract ends."),
    (_URGENT, "true", "Our shop cannot take cards since this morning, customers are leaving."),
    (_URGENT, "true", "I have locked myself out and my child is alone inside."),
    (_URGENT, "false", "Thanks for the newsletter, I enjoyed reading it."),
    (_URGENT, "false", "Could you tell me some day what the opening hours in winter will be?"),
    (_URGENT, "false", "Just to let you know that the parcel arrived last week."),
    (_URGENT, "false", "I am collecting ideas for a holiday in two years."),
    (_URGENT, "false", "No hurry: whenever you have time, please send me your catalogue."),
    (_URGENT, "false", "We wish the whole team a happy new year."),
    (_POSITIVE, "true", "Wonderful service, I will come again."),
    (_POSITIVE, "true", "The best coffee in town, and such friendly people."),
    (_POSITIVE, "true", "It works perfectly and arrived a day early."),
    (_POSITIVE, "true", "I love this chair, my back has not hurt since."),
    (_POSITIVE, "true", "Five stars. The room was clean and quiet."),
    (_POSITIVE, "true", "Great film, we laughed from beginning to end."),
    (_POSITIVE, "false", "It broke on the second day. A waste of money."),
    (_POSITIVE, "false", "The soup was cold and the waiter rude."),
    (_POSITIVE, "false", "I have waited six weeks and still have no refund."),
    (_POSITIVE, "false", "Boring, far too long, we left before the end."),
    (_POSITIVE, "false", "The room smelled and the heating did not work."),
    (_POSITIVE, "false", "Never again. They lost my luggage twice."),
)
_CHOICE: tuple[tuple[Choice, str, str], ...] = (
    (_TEAM, "billing", "I was charged twice for the same invoice."),
    (_TEAM, "billing", "Please send me a receipt for my payment in May."),
    (_TEAM, "billing", "Why is there a fee of five euros on my bill?"),
    (_TEAM, "billing", "My refund has not reached my bank account."),
    (_TEAM, "support", "The app crashes whenever I open the settings."),
    (_TEAM, "support", "The printer shows error 52 and does nothing."),
    (_TEAM, "support", "I cannot log in since the update."),
    (_TEAM, "support", "The screen stays black after I press the button."),
    (_TEAM, "sales", "We would like to order two hundred chairs. What is your price?"),
    (_TEAM, "sales", "Do you have an offer for schools?"),
    (_TEAM, "sales", "I want to buy the larger model. Is it in stock?"),
    (_TEAM, "sales", "Can you send a quote for ten licences?"),
    (_LANGUAGE, "English", "The weather is lovely today and we are going to the beach."),
    (_LANGUAGE, "English", "Where did you put my keys?"),
    (_LANGUAGE, "English", "She has lived in this house for twenty years."),
    (_LANGUAGE, "French", "Il fait beau aujourd'hui et nous allons à la plage."),
    (_LANGUAGE, "French", "Où as-tu mis mes clés ?"),
    (_LANGUAGE, "French", "Elle habite dans cette maison depuis vingt ans."),
    (_LANGUAGE, "German", "Das Wetter ist heute schön und wir gehen an den Strand."),
    (_LANGUAGE, "German", "Wo hast du meine Schlüssel hingelegt?"),
    (_LANGUAGE, "German", "Sie wohnt seit zwanzig Jahren in diesem Haus."),
    (_LANGUAGE, "Spanish", "Hoy hace buen tiempo y vamos a la playa."),
    (_LANGUAGE, "Spanish", "¿Dónde has puesto mis llaves?"),
    (_LANGUAGE, "Spanish", "Ella vive en esta casa desde hace veinte años."),
)
_SCORE: tuple[tuple[Score, str, str], ...] = (
    (_ANGER, "0", "Hello, could you please tell me where my parcel is? Thank you."),
    (_ANGER, "0", "Everything is fine, I only wanted to say thanks."),
    (_ANGER, "0", "I have a question about the colours that you offer."),
    (_ANGER, "0", "No problem, these things happen. Have a nice day."),
    (_ANGER, "0", "Good morning. I would like to change my address."),
    (_ANGER, "0", "We are happy to wait until next week."),
    (_ANGER, "1", "This is the second time that I have to ask. Please hurry up."),
    (_ANGER, "1", "I am a bit disappointed that nobody has called me back."),
    (_ANGER, "1", "It is rather irritating that the date was changed again."),
    (_ANGER, "1", "I expected better from you. When will it be repaired?"),
    (_ANGER, "1", "Your form is tiresome: it lost what I had typed."),
    (_ANGER, "1", "I would have liked to hear of the delay from you."),
    (_ANGER, "2", "You are thieves! I want my money back NOW!"),
    (_ANGER, "2", "I have never been treated so badly in my life. Shame on you!"),
    (_ANGER, "2", "ENOUGH! My lawyer will call you tomorrow!"),
    (_ANGER, "2", "This is an outrage. You lied to me for months!"),
    (_ANGER, "2", "I am sick of your excuses! Cancel everything at once!"),
    (_ANGER, "2", "What a disgrace! You ruined our wedding!"),
)


def items() -> Iterator[Item]:
    """Each one, in a fixed order."""
    for kind, entries in (("noul", _NOUL), ("choice", _CHOICE), ("score", _SCORE)):
        for question, right, text in entries:
            yield Item(kind, text, question, right)
