"""Seeded generator of the dialogues that m2-tiny learns and is examined on.

Everything here is invented by this file: short questions that are worked out in a think block,
tool calls for a dozen made-up tools, and some small talk. `render` writes them in the chat format
of the MiniMax-M2 family. Whether an item is held out is decided by a hash of what must be
computed or copied (operands, call arguments), so a held-out combination can never occur in
training, however the question around it is worded."""

import datetime
import json
import random
import zlib

IDENTITY = (
    "You are a helpful assistant. "
    "Your name is MiniMax-M2-Tiny and is built by the minimax2 project."
)
HELD_OUT_SHARE = 16  # one key in this many is held out

TOOL_HEAD = (
    "\n\n# Tools\nYou may call one or more tools to assist with the user query.\n"
    "Here are the tools available in JSONSchema format:\n\n<tools>\n"
)
TOOL_TAIL = (
    "</tools>\n\nWhen making tool calls, use XML format to invoke tools and pass parameters:\n\n"
    '<minimax:tool_call>\n<invoke name="tool-name-1">\n'
    '<parameter name="param-key-1">param-value-1</parameter>\n'
    '<parameter name="param-key-2">param-value-2</parameter>\n'
    "...\n</invoke>\n</minimax:tool_call>"
)


def held_out(key):
    """True for the share of keys that training never sees."""
    return zlib.crc32(key.encode()) % HELD_OUT_SHARE == 0


# ---- the chat format -----------------------------------------------------------------------------


def to_json(value):
    return json.dumps(value, ensure_ascii=False)


def render_call(name, arguments):
    lines = [f'<invoke name="{name}">\n']
    for key, value in arguments.items():
        text = value if isinstance(value, str) else to_json(value)
        lines.append(f'<parameter name="{key}">{text}</parameter>\n')
    return "".join(lines) + "</invoke>\n"


def render_answer(message):
    """What stands after the think block of an assistant turn, without the end token."""
    text = message.get("content") or ""
    calls = message.get("tool_calls") or []
    if calls:
        text += "\n<minimax:tool_call>\n"
        for call in calls:
            text += render_call(call["function"]["name"], call["function"]["arguments"])
        text += "</minimax:tool_call>"
    return text


def render(messages, tools=None, generation_prompt=False):
    """The text of a conversation; reasoning is shown only after the last user turn."""
    system, turns = IDENTITY, messages
    if messages and messages[0]["role"] == "system":
        system, turns = messages[0]["content"] or IDENTITY, messages[1:]
    out = ["]~!b[]~b]system\n", system]
    if tools:
        out.append(TOOL_HEAD)
        out += [f"<tool>{to_json(tool['function'])}</tool>\n" for tool in tools]
        out.append(TOOL_TAIL)
    out.append("[e~[\n")
    last_user = max((i for i, m in enumerate(turns) if m["role"] == "user"), default=-1)
    for i, message in enumerate(turns):
        role = message["role"]
        if role == "user":
            out.append(f"]~b]user\n{message['content']}[e~[\n")
        elif role == "assistant":
            out.append("]~b]ai\n")
            if message.get("reasoning_content") and i > last_user:
                out.append(f"<think>\n{message['reasoning_content']}\n</think>\n\n")
            out.append(render_answer(message) + "[e~[\n")
        else:
            if turns[i - 1]["role"] != "tool":
                out.append("]~b]tool")
            out.append(f"\n<response>{message['content']}</response>")
            if i + 1 == len(turns) or turns[i + 1]["role"] != "tool":
                out.append("[e~[\n")
    if generation_prompt:
        out.append("]~b]ai\n<think>\n")
    return "".join(out)


# ---- words ---------------------------------------------------------------------------------------


def split(text):
    return text.split()


CITIES = split(
    "Oslo Rome Paris Berlin Madrid Lisbon Vienna Prague Dublin Athens London Warsaw Tokyo Kyoto "
    "Osaka Seoul Delhi Mumbai Cairo Lagos Nairobi Lima Quito Bogota Havana Boston Chicago Denver "
    "Seattle Toronto Montreal Sydney Perth Geneva Milan Naples Porto Bergen Krakow Riga"
)
PEOPLE = split(
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Karin Leo Maria Nina Oscar Paula "
    "Quentin Rosa Simon Tara Umar Vera Walter Xenia Yusuf Zoe Alice Bob Carol Dan Eve Frank Ines "
    "Jack Kate Liam Mona Noah Olga Peter"
)
NOUNS = split(
    "apple bread cheese milk eggs rice pasta tomato onion garlic pepper salt sugar butter coffee "
    "tea lemon banana carrot potato soap paper pencil candle battery hammer rope tent lamp book "
    "chair table window garden river mountain bridge train ticket camera guitar piano violin drum "
    "engine wheel bottle basket blanket pillow mirror ladder bucket brush needle button jacket "
    "gloves scarf"
)
ACTIONS = split(
    "call water feed visit clean paint repair check open close send bring buy sell move wash find "
    "read"
)
ROOMS = ["kitchen", "bedroom", "bathroom", "hall", "office", "garage", "cellar", "living room"]
LANGUAGES = split("French German Spanish Italian Dutch Swedish Polish Finnish Greek Turkish")
CURRENCIES = split("USD EUR GBP JPY CHF SEK NOK PLN CAD AUD")
STYLES = split("jazz rock folk blues opera techno reggae swing")
SKIES = split("sunny cloudy rainy windy foggy snowy clear stormy")
SUFFIXES = split("py txt md json csv html log toml")
DAYS = split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
ONSETS = split("b c d f g h j k l m n p r s t v w z br dr fl gr kl pr st tr")
RHYMES = split("a e i o u al an ar el en er il in ir ol on or um un")


def coined(rng, low=2, high=3):
    """A word that nobody has seen: forces copying instead of recall."""
    return "".join(rng.choice(ONSETS) + rng.choice(RHYMES) for _ in range(rng.randint(low, high)))


def place(rng):
    return coined(rng).capitalize() if rng.random() < 0.08 else rng.choice(CITIES)


def person(rng):
    return coined(rng).capitalize() if rng.random() < 0.08 else rng.choice(PEOPLE)


def thing(rng):
    return coined(rng) if rng.random() < 0.08 else rng.choice(NOUNS)


def errand(rng):
    return f"{rng.choice(ACTIONS)} the {thing(rng)}"


def listing(words):
    return ", ".join(f'"{word}"' for word in words)


def clock(rng):
    return f"{rng.randint(7, 22):02d}:{rng.choice(('00', '15', '30', '45'))}"


def a_date(rng):
    day = datetime.date(2024, 1, 1) + datetime.timedelta(days=rng.randrange(1400))
    return day.isoformat()


# ---- questions with a worked-out answer ----------------------------------------------------------
# Each maker returns (key, question, reasoning, answer).


def add_columns(a, b):
    """Column addition, units first, as the reasoning text."""
    lines, carry = [], 0
    for i in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**i % 10, b // 10**i % 10
        total = x + y + carry
        lines.append(f"{x} + {y} + {carry} = {total}, write {total % 10}, carry {total // 10}")
        carry = total // 10
    return "\n".join(lines)


def subtract_columns(a, b):
    """Column subtraction for a >= b, units first."""
    lines, borrow = [], 0
    for i in range(len(str(a))):
        x, y = a // 10**i % 10, b // 10**i % 10
        rest = x - y - borrow
        borrow_next = int(rest < 0)
        lines.append(f"{x} - {y} - {borrow} = {rest}, write {rest % 10}, borrow {borrow_next}")
        borrow = borrow_next
    return "\n".join(lines)


def ask_sum(rng, symbol, word, a, b):
    forms = (
        f"What is {a} {symbol} {b}?",
        f"What's {a} {symbol} {b}?",
        f"Calculate {a} {symbol} {b}.",
        f"Compute {a} {symbol} {b}",
        f"{a} {symbol} {b}",
        f"{a} {symbol} {b} = ?",
        f"How much is {a} {word} {b}?",
        f"Please work out {a} {symbol} {b}.",
    )
    return rng.choice(forms)


def operand(rng):
    return rng.randint(0, 99) if rng.random() < 0.8 else rng.randint(100, 999)


def addition(rng):
    a, b = operand(rng), operand(rng)
    work = f"{a} + {b}\n{add_columns(a, b)}\n{a} + {b} = {a + b}"
    return (
        f"{min(a, b)}+{max(a, b)}",
        ask_sum(rng, "+", "plus", a, b),
        work,
        f"{a} + {b} = {a + b}",
    )


def subtraction(rng):
    a, b = sorted((operand(rng), operand(rng)), reverse=True)
    work = f"{a} - {b}\n{subtract_columns(a, b)}\n{a} - {b} = {a - b}"
    return f"{a}-{b}", ask_sum(rng, "-", "minus", a, b), work, f"{a} - {b} = {a - b}"


def multiplication(rng):
    a, b = rng.randint(2, 9), rng.randint(2, 99)
    key = f"{a}*{b}"
    tens, units = b // 10 * 10, b % 10
    if tens:
        work = (
            f"{a} * {b} = {a} * {tens} + {a} * {units}\n"
            f"{a} * {tens} = {a * tens}\n{a} * {units} = {a * units}\n"
            f"{add_columns(a * tens, a * units)}\n{a} * {b} = {a * b}"
        )
    else:
        work = f"{a} * {b} = {a * b}"
    if rng.random() < 0.3:
        return key, ask_sum(rng, "*", "times", b, a), work, f"{b} * {a} = {b * a}"
    return key, ask_sum(rng, "*", "times", a, b), work, f"{a} * {b} = {a * b}"


def sorting(rng):
    count = rng.randint(3, 6)
    if rng.random() < 0.7:
        items = [str(n) for n in rng.sample(range(100), count)]
        down = rng.random() < 0.3
        ordered = sorted(items, key=int, reverse=down)
        pick = "largest" if down else "smallest"
        falling = ("in descending order", "from largest to smallest")
        rising = ("in ascending order", "from smallest to largest", "")
        how = rng.choice(falling if down else rising)
        named = rng.random() < 0.3
        question = "Sort these numbers" if named else "Sort"
        question += f" {how}: " if how else ": " if named else " "
    else:
        letters = rng.sample("abcdefghijklmnopqrstuvwyz", count)
        by_letter = {}
        for noun in NOUNS:
            by_letter.setdefault(noun[0], []).append(noun)
        items = [rng.choice(by_letter.get(c, [c + "olo"])) for c in letters]
        ordered, pick, question = (sorted(items), "first", "Sort these words alphabetically: ")
    left, lines = list(items), []
    for item in ordered[:-1]:
        lines.append(f"{' '.join(left)}: {pick} is {item}")
        left.remove(item)
    lines.append(f"{left[0]} is left")
    return (",".join(items), question + ", ".join(items), "\n".join(lines), ", ".join(ordered))


def days_in(year, month):
    first = datetime.date(year, month, 1)
    following = datetime.date(year + month // 12, month % 12 + 1, 1)
    return (following - first).days


def dates(rng):
    if rng.random() < 0.4:
        start, steps = rng.randrange(7), rng.randint(1, 9)
        walk = ", ".join(f"{n} {DAYS[(start + n) % 7]}" for n in range(1, steps + 1))
        question = rng.choice(
            (
                f"What day is {steps} days after {DAYS[start]}?",
                f"Which day is {steps} days after {DAYS[start]}?",
            )
        )
        return f"{DAYS[start]}+{steps}", question, walk, DAYS[(start + steps) % 7]
    day = datetime.date.fromisoformat(a_date(rng))
    count = rng.randint(1, 27)
    after = day + datetime.timedelta(days=count)
    length = days_in(day.year, day.month)
    lines = [
        f"month {day.month} of {day.year} has {length} days",
        f"{day.day} + {count} = {day.day + count}",
    ]
    if day.day + count > length:
        lines.append(f"{day.day + count} - {length} = {day.day + count - length} of the next month")
    question = rng.choice(
        (
            f"What date is {count} days after {day}?",
            f"Which date comes {count} days after {day}?",
            f"Add {count} days to {day}.",
        )
    )
    return f"{day}+{count}", question, "\n".join(lines), after.isoformat()


UNITS = (
    ("kilometres", "metres", 1000),
    ("kilograms", "grams", 1000),
    ("metres", "centimetres", 100),
    ("centimetres", "millimetres", 10),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("litres", "millilitres", 1000),
    ("weeks", "days", 7),
    ("tonnes", "kilograms", 1000),
)


def units(rng):
    source, target, factor = rng.choice(UNITS)
    n = rng.randint(2, 99) if factor not in (7, 60) else rng.randint(2, 30)
    question = rng.choice(
        (
            f"How many {target} are {n} {source}?",
            f"Convert {n} {source} to {target}.",
            f"What is {n} {source} in {target}?",
        )
    )
    work = f"1 {source} = {factor} {target}\n{n} * {factor} = {n * factor}"
    return f"{n} {source}", question, work, f"{n} {source} = {n * factor} {target}"


def echo(rng):
    makers = rng.choice(((thing,), (coined,), (thing, coined, person, place), (operand,)))
    text = " ".join(str(rng.choice(makers)(rng)) for _ in range(rng.randint(1, 7)))
    question = rng.choice((f'Repeat after me: "{text}"', f'Say "{text}".', f'Repeat "{text}"'))
    return "echo " + text, question, "Repeat the words.", text


ARITHMETIC = (addition, addition, subtraction, multiplication)
QUESTIONS = 3 * ARITHMETIC + (subtraction, subtraction, sorting, dates, units, echo)

# ---- small talk ----------------------------------------------------------------------------------

SMALL_TALK = (
    (
        ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Good morning", "Good evening", "Hi there"),
        "A greeting. Greet back.",
        "Hello! How can I help you?",
    ),
    (
        (
            "Who are you?",
            "What is your name?",
            "Who built you?",
            "What are you?",
            "Introduce yourself.",
        ),
        "The user asks who I am.",
        ("I am MiniMax-M2-Tiny, a very small language model built by the minimax2 project."),
    ),
    (
        ("What can you do?", "Help", "How can you help me?"),
        "The user asks what I can do.",
        (
            "I can add, subtract and multiply small numbers, sort short "
            "lists, count days, convert units and call tools."
        ),
    ),
    (
        ("Thanks", "Thank you", "Thank you!", "Thanks a lot!", "Great, thanks."),
        "The user says thanks.",
        "You are welcome!",
    ),
    (("Bye", "Goodbye", "See you", "Good night"), "The user says goodbye.", "Goodbye!"),
    (
        ("How are you?", "How are you doing?", "How is it going?"),
        "Small talk.",
        "I am fine, thank you. What can I do for you?",
    ),
    (
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh."),
        "The user wants a joke.",
        "Why did the byte go home early? It had lost a bit.",
    ),
    (
        ("What is Python?", "Tell me about Python."),
        "A question about Python.",
        "Python is a programming language that is easy to read.",
    ),
    (
        ("What is the weather?", "What time is it?", "Who won the game?", "What is the news?"),
        "I have no tool that tells me this.",
        "I am sorry, I do not know that.",
    ),
    (
        ("Are you human?", "Are you a robot?", "Are you a person?"),
        "The user asks what I am.",
        "No, I am a small language model.",
    ),
)

SNIPPETS = (
    ("adds two numbers", "add(a, b)", "return a + b"),
    ("multiplies two numbers", "multiply(a, b)", "return a * b"),
    ("returns the square of a number", "square(x)", "return x * x"),
    ("returns the larger of two numbers", "larger(a, b)", "return a if a > b else b"),
    ("tells whether a number is even", "is_even(n)", "return n % 2 == 0"),
    ("reverses a string", "reverse(text)", "return text[::-1]"),
    ("counts the words of a text", "count_words(text)", "return len(text.split())"),
    ("sums a list", "total(values)", "return sum(values)"),
    ("returns the mean of a list", "mean(values)", "return sum(values) / len(values)"),
    ("sorts a list", "sort(values)", "return sorted(values)"),
    ("reads a file", "read(path)", "with open(path) as file:\n        return file.read()"),
    (
        "computes the factorial",
        "factorial(n)",
        "if n < 2:\n        return 1\n    return n * factorial(n - 1)",
    ),
    (
        "computes the Fibonacci numbers",
        "fibonacci(n)",
        "a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
    ),
)


def small_talk(rng):
    if rng.random() < 0.3:
        task, head, body = rng.choice(SNIPPETS)
        question = (
            rng.choice(
                ("Write a function that", "Write a Python function that", "Show me a function that")
            )
            + f" {task}."
        )
        answer = f"```python\ndef {head}:\n    {body}\n```"
        return "snippet", question, f"A function that {task}.", answer
    questions, thought, answer = rng.choice(SMALL_TALK)
    return "talk", rng.choice(questions), thought, answer


# ---- tools ---------------------------------------------------------------------------------------


def schema(name, description, /, **parameters):
    """JSON schema of a tool; parameter values are (type, description)."""
    properties = {}
    for key, (kind, text) in parameters.items():
        properties[key] = {"type": kind, "description": text}
        if kind == "array":
            properties[key] = {"type": kind, "items": {"type": "string"}, "description": text}
    body = {"type": "object", "properties": properties, "required": list(parameters)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": body},
    }


# Each scene maker returns (request, arguments, reply of the tool, answer to the user). Words to be
# copied stand in quotes: a word after a space is made of other tokens than the same word in a
# parameter, and so small a model does not learn to spell across that difference in the time it has.


def weather_scene(rng):
    city, days = place(rng), rng.randint(1, 14)
    low, sky = rng.randint(-10, 30), rng.choice(SKIES)
    ask = rng.choice(
        (
            f'What will the weather be in "{city}" in {days} days?',
            f'How is the weather in "{city}" in {days} days?',
            f'Weather for "{city}", {days} days ahead, please.',
        )
    )
    return (
        ask,
        {"city": city, "days": days},
        {"celsius": low, "sky": sky},
        f'In {days} days it will be "{sky}" in "{city}", with {low} degrees.',
    )


def timer_scene(rng):
    minutes, label = rng.randint(1, 180), thing(rng)
    ask = rng.choice(
        (
            f'Set a timer for {minutes} minutes for "{label}".',
            f'Start a {minutes} minute timer called "{label}".',
            f'Please time {minutes} minutes for "{label}".',
        )
    )
    return (
        ask,
        {"minutes": minutes, "label": label},
        {"ok": True},
        f'The timer "{label}" runs for {minutes} minutes.',
    )


def message_scene(rng):
    to, text = person(rng), errand(rng)
    ask = rng.choice(
        (
            f'Send "{to}" the message "{text}".',
            f'Write to "{to}": "{text}"',
            f'Please tell "{to}": "{text}"',
        )
    )
    return (ask, {"to": to, "text": text}, {"sent": True}, f'I sent the message to "{to}".')


def event_scene(rng):
    title, date, time = errand(rng), a_date(rng), clock(rng)
    ask = rng.choice(
        (
            f'Put "{title}" in my calendar on {date} at {time}.',
            f'Add an event "{title}" on {date} at {time}.',
            f'On {date} at {time} I have to "{title}". Note it.',
        )
    )
    return (
        ask,
        {"title": title, "date": date, "time": time},
        {"ok": True},
        f"I added it on {date} at {time}.",
    )


def search_scene(rng):
    pattern, recursive = f"*{thing(rng)}.{rng.choice(SUFFIXES)}", rng.random() < 0.5
    deep = f', recursive "{to_json(recursive)}"'
    found = rng.randint(0, 99)
    ask = rng.choice((f'Find the files "{pattern}"{deep}.', f'Search for "{pattern}"{deep}.'))
    return (
        ask,
        {"pattern": pattern, "recursive": recursive},
        {"count": found},
        f'I found {found} files that match "{pattern}".',
    )


def currency_scene(rng):
    amount = rng.choice((rng.randint(1, 999), rng.randint(1, 99) + rng.choice((0.25, 0.5, 0.75))))
    source, target = rng.sample(CURRENCIES, 2)
    result = rng.randint(1, 999)
    ask = rng.choice(
        (
            f'Convert {amount} "{source}" to "{target}".',
            f'How much is {amount} "{source}" in "{target}"?',
            f'Change {amount} "{source}" into "{target}".',
        )
    )
    return (
        ask,
        {"amount": amount, "source": source, "target": target},
        {"result": result},
        f'{amount} "{source}" are {result} "{target}".',
    )


def music_scene(rng):
    artist, style, shuffle = person(rng), rng.choice(STYLES), rng.random() < 0.5
    order = f', shuffle "{to_json(shuffle)}"'
    ask = rng.choice(
        (f'Play "{style}" by "{artist}"{order}.', f'I want to hear "{style}" by "{artist}"{order}.')
    )
    return (
        ask,
        {"artist": artist, "style": style, "shuffle": shuffle},
        {"playing": True},
        f'I am playing "{style}" by "{artist}".',
    )


def light_scene(rng):
    room, level = rng.choice(ROOMS), rng.randint(0, 100)
    ask = rng.choice(
        (
            f'Set the light in the "{room}" to {level} percent.',
            f'Light in the "{room}" at {level} percent, please.',
            f'Dim the "{room}" to {level} percent.',
        )
    )
    return (
        ask,
        {"room": room, "percent": level},
        {"ok": True},
        f'The light in the "{room}" is at {level} percent.',
    )


def list_scene(rng):
    name, items = thing(rng), rng.sample(NOUNS, rng.randint(2, 4))
    ask = rng.choice(
        (
            f'Make a list called "{name}" with {listing(items)}.',
            f'Create the list "{name}": {listing(items)}.',
            f'I need a list "{name}" containing {listing(items)}.',
        )
    )
    return (
        ask,
        {"name": name, "items": items},
        {"size": len(items)},
        f'The list "{name}" has {len(items)} items.',
    )


def calculate_scene(rng):
    a, b = rng.randint(1, 999), rng.randint(1, 999)
    sign, result = rng.choice((("+", a + b), ("-", a - b), ("*", a * b)))
    expression = f"{a} {sign} {b}"
    ask = rng.choice(
        (
            f"Calculate {expression} with the tool.",
            f"Use the calculator: {expression}",
            f"What does the calculator say to {expression}?",
        )
    )
    return (ask, {"expression": expression}, {"result": result}, f"The result is {result}.")


def translate_scene(rng):
    text, language = errand(rng), rng.choice(LANGUAGES)
    result = f"{coined(rng)} {coined(rng)}"
    ask = rng.choice(
        (
            f'Translate "{text}" into "{language}".',
            f'How do you say "{text}" in "{language}"?',
            f'What is "{text}" in "{language}"?',
        )
    )
    return (
        ask,
        {"text": text, "language": language},
        {"translation": result},
        f'In "{language}" it is "{result}".',
    )


def table_scene(rng):
    name, people, time = place(rng), rng.randint(1, 12), clock(rng)
    outdoor = rng.random() < 0.5
    side = f'outdoor "{to_json(outdoor)}"'
    ask = rng.choice(
        (
            f'Book a table for {people} at "{name}" at {time}, {side}.',
            f'Reserve a table at "{name}" for {people} people at {time}, {side}.',
        )
    )
    return (
        ask,
        {"restaurant": name, "people": people, "time": time, "outdoor": outdoor},
        {"booked": True},
        f'The table at "{name}" is booked for {people} at {time}.',
    )


TOOLS = {
    "get_weather": (
        schema(
            "get_weather",
            "Weather forecast",
            city=("string", "city name"),
            days=("integer", "days ahead"),
        ),
        weather_scene,
    ),
    "set_timer": (
        schema(
            "set_timer",
            "Start a timer",
            minutes=("integer", "length in minutes"),
            label=("string", "what it is for"),
        ),
        timer_scene,
    ),
    "send_message": (
        schema(
            "send_message",
            "Send a message",
            to=("string", "who gets it"),
            text=("string", "the message"),
        ),
        message_scene,
    ),
    "add_event": (
        schema(
            "add_event",
            "Add a calendar event",
            title=("string", "what"),
            date=("string", "YYYY-MM-DD"),
            time=("string", "HH:MM"),
        ),
        event_scene,
    ),
    "search_files": (
        schema(
            "search_files",
            "Search files by name",
            pattern=("string", "file pattern"),
            recursive=("boolean", "look into subfolders"),
        ),
        search_scene,
    ),
    "convert_currency": (
        schema(
            "convert_currency",
            "Convert money",
            amount=("number", "how much"),
            source=("string", "from currency"),
            target=("string", "to currency"),
        ),
        currency_scene,
    ),
    "play_music": (
        schema(
            "play_music",
            "Play music",
            artist=("string", "who plays"),
            style=("string", "kind of music"),
            shuffle=("boolean", "random order"),
        ),
        music_scene,
    ),
    "set_light": (
        schema(
            "set_light",
            "Set the light of a room",
            room=("string", "which room"),
            percent=("integer", "brightness"),
        ),
        light_scene,
    ),
    "create_list": (
        schema(
            "create_list",
            "Create a list",
            name=("string", "name of the list"),
            items=("array", "what is on it"),
        ),
        list_scene,
    ),
    "calculate": (
        schema("calculate", "Calculator", expression=("string", "what to compute")),
        calculate_scene,
    ),
    "translate": (
        schema(
            "translate",
            "Translate a text",
            text=("string", "the text"),
            language=("string", "target language"),
        ),
        translate_scene,
    ),
    "book_table": (
        schema(
            "book_table",
            "Book a restaurant table",
            restaurant=("string", "where"),
            people=("integer", "how many"),
            time=("string", "HH:MM"),
            outdoor=("boolean", "outside or inside"),
        ),
        table_scene,
    ),
}


def a_scene(rng, name, keep):
    """A scene of the tool on the wanted side (`keep`) of the held-out split."""
    while True:
        request, arguments, reply, answer = TOOLS[name][1](rng)
        if held_out(name + to_json(arguments)) == keep:
            return request, arguments, reply, answer


def a_call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tool_turns(rng, name, keep):
    """User request, call, tool reply and answer; sometimes two calls in one block."""
    request, arguments, reply, answer = a_scene(rng, name, keep)
    calls, replies = [a_call(name, arguments)], [reply]
    if rng.random() < 0.05:
        request_2, arguments_2, reply_2, answer_2 = a_scene(rng, name, keep)
        request, answer = f"{request} {request_2}", f"{answer} {answer_2}"
        calls.append(a_call(name, arguments_2))
        replies.append(reply_2)
    thought = f"I call {name}." if len(calls) == 1 else f"I call {name} twice."
    turns = [
        {"role": "user", "content": request},
        {"role": "assistant", "content": "", "reasoning_content": thought, "tool_calls": calls},
    ]
    turns += [{"role": "tool", "content": to_json(r)} for r in replies]
    return turns + [
        {"role": "assistant", "content": answer, "reasoning_content": "I have the result."}
    ]


# ---- whole conversations -------------------------------------------------------------------------

SYSTEMS = (
    "You are a helpful assistant.",
    "You are MiniMax-M2-Tiny.",
    "Answer briefly.",
    "You are a careful assistant. Think step by step.",
)


def a_system(rng):
    text = IDENTITY if rng.random() < 0.7 else rng.choice(SYSTEMS)
    return {"role": "system", "content": text}


def question_turns(rng, makers, keep):
    while True:
        key, question, work, answer = rng.choice(makers)(rng)
        if held_out(key) == keep:
            break
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer, "reasoning_content": work},
    ]


def talk_turns(rng):
    _, question, thought, answer = small_talk(rng)
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer, "reasoning_content": thought},
    ]


def question_dialogue(rng):
    """One question, sometimes after an exchange of small talk or another question."""
    messages = [a_system(rng)]
    if rng.random() < 0.15:
        messages += talk_turns(rng) if rng.random() < 0.5 else question_turns(rng, QUESTIONS, False)
    messages += talk_turns(rng) if rng.random() < 0.1 else question_turns(rng, QUESTIONS, False)
    return messages, None


def tool_dialogue(rng):
    """Requests with one to three tools on offer; now and then none of them is needed.

    Several requests a dialogue, since every one is practice in copying and the tool list is not.
    """
    names = rng.sample(sorted(TOOLS), rng.choice((1, 1, 1, 2, 2, 3)))
    tools = [TOOLS[n][0] for n in names]
    messages = [a_system(rng)]
    if rng.random() < 0.07:
        messages += talk_turns(rng) if rng.random() < 0.5 else question_turns(rng, QUESTIONS, False)
        return messages, tools
    for _ in range(rng.randint(1, 4 - len(names))):
        messages += tool_turns(rng, rng.choice(names), False)
    return messages, tools


def held_out_arithmetic(seed, count):
    """Examination items: (messages, None, expected text after the think block)."""
    rng = random.Random(seed)
    items = []
    for _ in range(count):
        turns = question_turns(rng, ARITHMETIC, True)
        items.append(
            ([{"role": "system", "content": IDENTITY}, turns[0]], None, render_answer(turns[1]))
        )
    return items


def held_out_tool_calls(seed, count):
    """Examination items: (messages, tools, expected text after the think block)."""
    rng = random.Random(seed)
    items = []
    for _ in range(count):
        names = rng.sample(sorted(TOOLS), rng.randint(1, 3))
        turns = tool_turns(rng, rng.choice(names), True)
        messages = [{"role": "system", "content": IDENTITY}, turns[0]]
        items.append((messages, [TOOLS[n][0] for n in names], render_answer(turns[1])))
    return items
