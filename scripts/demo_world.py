"""Everyday words, facts and small talk for the training text of the demo model."""


def _words(text: str) -> tuple[str, ...]:
    """Comma-separated words, which keep a table of short strings on few lines."""
    return tuple(text.split(","))


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Comma-separated `left:right` pairs."""
    return tuple((left, right) for left, _, right in (p.partition(":") for p in text.split(",")))


CAPITALS = dict(
    _pairs(
        "France:Paris,Germany:Berlin,Italy:Rome,Spain:Madrid,Austria:Vienna,Greece:Athens,"
        "England:London,Ireland:Dublin,Japan:Tokyo,China:Beijing,India:New Delhi,Russia:Moscow,"
        "Egypt:Cairo,Canada:Ottawa,Brazil:Brasilia,the United States:Washington"
    )
)

COLOURS = dict(
    _pairs(
        "the sky:blue,grass:green,snow:white,a banana:yellow,a lemon:yellow,blood:red,"
        "a tomato:red,coal:black,milk:white,the sun:yellow,an orange:orange,a carrot:orange,"
        "chocolate:brown,a frog:green,the sea:blue,a strawberry:red,the night:black,"
        "a cucumber:green,a polar bear:white,a fire engine:red,an elephant:grey,a cloud:white"
    )
)

COUNTS = (
    ("How many days are in a week?", "A week has seven days."),
    ("How many months are in a year?", "A year has twelve months."),
    ("How many hours are in a day?", "A day has 24 hours."),
    ("How many minutes are in an hour?", "An hour has 60 minutes."),
    ("How many seconds are in a minute?", "A minute has 60 seconds."),
    ("How many days are in a year?", "A year has 365 days, and a leap year has 366."),
    ("How many legs does a dog have?", "A dog has four legs."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("How many legs does an insect have?", "An insect has six legs."),
    ("How many legs does a bird have?", "A bird has two legs."),
    ("How many sides does a triangle have?", "A triangle has three sides."),
    ("How many sides does a square have?", "A square has four sides."),
    ("How many letters are in the alphabet?", "The English alphabet has 26 letters."),
    ("How many bits are in a byte?", "A byte has eight bits."),
    ("How many continents are there?", "There are seven continents."),
    ("How many milliseconds are in a second?", "A second has 1000 milliseconds."),
    ("How many planets are there?", "There are eight planets around the sun."),
    ("What is water made of?", "Water is made of hydrogen and oxygen."),
    ("What is Python?", "Python is a programming language. AccelGen is written in Python."),
    ("What is Linux?", "Linux is an operating system. AccelGen runs on Linux."),
    ("What is a GPU?", "A GPU is a processor that computes many numbers at the same time."),
    ("What is a CPU?", "A CPU is the main processor of a computer."),
    ("What is HTTP?", "HTTP is the protocol by which browsers and servers talk."),
    ("What is the largest planet?", "The largest planet is Jupiter."),
    ("What is the largest ocean?", "The largest ocean is the Pacific."),
    ("Which animal barks?", "A dog barks."),
    ("What does a cat say?", "A cat says meow."),
    ("What does a cow say?", "A cow says moo."),
    ("What do bees make?", "Bees make honey."),
    ("Where does the sun rise?", "The sun rises in the east."),
    ("Where do fish live?", "Fish live in water."),
    ("At what temperature does water boil?", "Water boils at 100 degrees Celsius."),
    ("At what temperature does water freeze?", "Water freezes at 0 degrees Celsius."),
)

OPPOSITES = _pairs(
    "hot:cold,big:small,fast:slow,good:bad,up:down,left:right,day:night,young:old,"
    "happy:sad,early:late,open:closed,full:empty,light:dark,long:short,hard:soft,"
    "high:low,strong:weak,rich:poor,wet:dry,clean:dirty,loud:quiet,first:last"
)

DAYS = _words("Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday")
MONTHS = _words(
    "January,February,March,April,May,June,July,August,September,October,November,December"
)
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are the demo model of AccelGen.",
    "You are a friendly assistant.",
    "You are AccelGen, a helpful assistant.",
    "Answer in one sentence.",
    "You are a polite and helpful chatbot.",
    "Be concise.",
    "You are an expert on language model servers.",
)

SMALL_TALK = (
    (
        ("Hello!", "Hi!", "Hey!", "Hello there!", "Hi there!", "Good day!", "hello", "hi", "hey"),
        "Hello! How can I help you?",
    ),
    (("Good morning!", "Good morning, how are you?"), "Good morning! What can I do for you?"),
    (("Good evening!",), "Good evening! What can I do for you?"),
    (
        (
            "How are you?",
            "How are you doing?",
            "How do you do?",
            "How is it going?",
            "What's up?",
            "Are you well?",
        ),
        "I am fine, thank you. How can I help you?",
    ),
    (
        ("Thanks!", "Thank you!", "Thank you very much.", "Thanks a lot!", "Many thanks.", "thx"),
        "You are welcome!",
    ),
    (
        ("Bye!", "Goodbye!", "See you!", "See you later.", "Good night!", "I have to go."),
        "Goodbye! Come back soon.",
    ),
    (
        (
            "Ok.",
            "Okay.",
            "I see.",
            "Great!",
            "Nice!",
            "Cool.",
            "Good.",
            "Perfect!",
            "Yes.",
            "Sure.",
        ),
        "Good. Is there anything else you want to know?",
    ),
    (("No.", "No, thanks.", "That is all.", "Nothing."), "All right. Have a nice day!"),
    (
        ("Do you like music?", "Do you like films?", "Do you like cats?", "Do you like football?"),
        "I am only a small program, but many people do.",
    ),
    (
        (
            "What is the weather like?",
            "Will it rain today?",
            "What time is it?",
            "What day is it?",
            "What is the news?",
            "Which date is today?",
        ),
        "I do not know that. I have no connection to the outside world.",
    ),
    (
        ("You are wrong.", "That is wrong.", "This makes no sense.", "That is not correct."),
        "I am sorry. I am only a small demo model and make many mistakes.",
    ),
    (
        ("You are great!", "I like you.", "Well done!", "Good job!", "That is right."),
        "Thank you, that is kind of you.",
    ),
    (
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Another joke, please."),
        "Why did the token wait in the queue? Because the batch was full.",
    ),
    (
        ("This is a test.", "Test", "Testing.", "ping", "Say something.", "Are you there?"),
        "The test works. I am here.",
    ),
    (
        (
            "Write a poem.",
            "Write me a poem.",
            "Write a haiku.",
            "Do you know a poem?",
            "Write a short poem about the sea.",
        ),
        "The tokens flow like drops of rain,\nThe queue is short, the blocks remain,\n"
        "The plan is made, the step is done,\nThe answer comes before the sun.",
    ),
    (
        (
            "My name is Anna.",
            "I am Tom.",
            "Hi, I am Paul.",
            "Hello, my name is Maria.",
            "My name is Alex.",
            "Hi, my name is Bob.",
            "I am called Lucy.",
            "This is Peter.",
        ),
        "Nice to meet you! How can I help you?",
    ),
    (
        ("What is my name?", "Do you know my name?", "Do you know me?", "Where am I?", "Who am I?"),
        "I do not remember such things. I am only a small demo model.",
    ),
)

NAMES = _words(
    "Anna,Ben,Clara,David,Emma,Felix,Grace,Henry,Ida,Jonas,Kate,Leo,Maria,Noah,Olga,Paul,Rosa,"
    "Sam,Tina,Victor,Alice,Bob,Carol,Eve,Frank,Lucy,Max,Nina,Oscar,Peter,Ruth,Simon,Tom,Zoe"
)
ANIMALS = _words("fox,rabbit,bear,cat,dog,mouse,owl,horse,frog,duck,wolf,bird,turtle,squirrel")
PLACES = _words("forest,village,garden,castle,mountain,river,old house,small town,meadow")
THINGS = _words("key,lamp,book,map,box,bell,letter,golden coin,red ball,old clock,blue stone")
TRAITS = _words("small,clever,brave,kind,lazy,curious,young,old,happy,shy,friendly,quiet")

# Things the model is asked about and does not know: it should say so and stay on its feet.
UNKNOWN = _words(
    "quantum physics,the meaning of life,love,football,the stock market,democracy,philosophy,"
    "the French revolution,photosynthesis,gravity,black holes,cooking,pasta,guitar,chess,history,"
    "relativity,evolution,dinosaurs,the moon,Mars,chemistry,biology,mathematics,algebra,geometry,"
    "Shakespeare,Mozart,painting,music theory,economics,inflation,taxes,law,medicine,yoga,sleep,"
    "coffee,tea,wine,bread,cheese,trees,flowers,volcanoes,earthquakes,climate,energy,batteries,"
    "cars,trains,airplanes,ships,bridges,robots,neural networks,databases,compilers,networks,"
    "encryption,bitcoin,Java,Rust,JavaScript,React,Docker,Kubernetes,Git,Windows,phones,cameras,"
    "a transformer,attention,recursion,sorting,a hash table,an algorithm,the internet,politics,"
    "religion,dreams,time travel,the universe,DNA,vaccines,the brain,happiness,money,fashion"
)
