"""The words of the embedded corpus (bmscale.data.toy) and how they are inflected, in English and in German.

The tables hold what a dictionary gives (gender, genitive, plural, third person, participle, auxiliary); everything
else is computed: the four cases, articles, adjective endings, present tense, zu-infinitives. One line is one word;
``_`` stands for a blank. Words are chosen one-to-one between the languages, so that English decides the German.

Indices used throughout: case NOM ACC DAT GEN = 0..3; gender masculine feminine neuter = 0..2, and PLURAL = 3 as the
fourth column of every declension; person I, you, he/she, we, they = 0..4 ("you" is always the familiar "du").
"""

from __future__ import annotations

from typing import NamedTuple

NOM, ACC, DAT, GEN = range(4)
PLURAL = 3
THIRD, THEY = 2, 4

# Nouns: English singular, plural; gender; German nominative, genitive, plural; tags (which verbs may take it).
# A plural of "-" marks a mass noun. A masculine whose genitive does not end in -s is weak (der Junge, den Jungen).
NOUNS = {
    "kin": """
        father fathers m Vater Vaters Väter
        mother mothers f Mutter Mutter Mütter
        brother brothers m Bruder Bruders Brüder
        sister sisters f Schwester Schwester Schwestern
        son sons m Sohn Sohnes Söhne
        daughter daughters f Tochter Tochter Töchter
        uncle uncles m Onkel Onkels Onkel
        aunt aunts f Tante Tante Tanten
        grandfather grandfathers m Großvater Großvaters Großväter
        grandmother grandmothers f Großmutter Großmutter Großmütter
    """,
    "social": """
        friend friends m Freund Freundes Freunde
        neighbor neighbors m Nachbar Nachbarn Nachbarn
        colleague colleagues m Kollege Kollegen Kollegen
        teacher teachers m Lehrer Lehrers Lehrer profession
        doctor doctors m Arzt Arztes Ärzte profession
        guest guests m Gast Gastes Gäste
    """,
    "role": """
        man men m Mann Mannes Männer
        woman women f Frau Frau Frauen
        child children n Kind Kindes Kinder
        boy boys m Junge Jungen Jungen
        girl girls n Mädchen Mädchens Mädchen
        student students m Student Studenten Studenten
        nurse nurses f Krankenschwester Krankenschwester Krankenschwestern
        baker bakers m Bäcker Bäckers Bäcker profession
        farmer farmers m Bauer Bauern Bauern profession
        policeman policemen m Polizist Polizisten Polizisten profession
        artist artists m Künstler Künstlers Künstler profession
        tourist tourists m Tourist Touristen Touristen
        engineer engineers m Ingenieur Ingenieurs Ingenieure profession
    """,
    "animal": """
        dog dogs m Hund Hundes Hunde pet
        cat cats f Katze Katze Katzen pet
        horse horses n Pferd Pferdes Pferde pet
        cow cows f Kuh Kuh Kühe
        bird birds m Vogel Vogels Vögel pet
        pig pigs n Schwein Schweins Schweine
        duck ducks f Ente Ente Enten
        rabbit rabbits n Kaninchen Kaninchens Kaninchen pet
    """,
    "food": """
        apple apples m Apfel Apfels Äpfel fruit
        pear pears f Birne Birne Birnen fruit
        banana bananas f Banane Banane Bananen fruit
        orange oranges f Orange Orange Orangen fruit
        tomato tomatoes f Tomate Tomate Tomaten fruit
        potato potatoes f Kartoffel Kartoffel Kartoffeln cooked
        egg eggs n Ei Eis Eier cooked
        soup soups f Suppe Suppe Suppen cooked
        cake cakes m Kuchen Kuchens Kuchen baked
        cookie cookies m Keks Kekses Kekse baked
        sausage sausages f Wurst Wurst Würste
        bread - n Brot Brotes - baked
        rice - m Reis Reises - cooked
        meat - n Fleisch Fleisches - cooked
        fish - m Fisch Fisches - cooked
        cheese - m Käse Käses -
    """,
    "drink": """
        water - n Wasser Wassers -
        milk - f Milch Milch -
        coffee - m Kaffee Kaffees -
        tea - m Tee Tees -
        juice - m Saft Saftes -
        lemonade - f Limonade Limonade -
    """,
    "text": """
        book books n Buch Buches Bücher lay,small
        letter letters m Brief Briefes Briefe lay,written,open,sent
        newspaper newspapers f Zeitung Zeitung Zeitungen lay
        poem poems n Gedicht Gedichts Gedichte written
        story stories f Geschichte Geschichte Geschichten written,told
        message messages f Nachricht Nachricht Nachrichten written,sent,told
        report reports m Bericht Berichts Berichte written,sent
        novel novels m Roman Romans Romane written,lay
    """,
    "thing": """
        lamp lamps f Lampe Lampe Lampen machine,goods
        clock clocks f Uhr Uhr Uhren fix,goods
        computer computers m Computer Computers Computer machine,fix,goods,use
        phone phones n Telefon Telefons Telefone fix,goods,use
        radio radios n Radio Radios Radios machine,fix,goods,use
        television televisions m Fernseher Fernsehers Fernseher machine,fix,goods
        camera cameras f Kamera Kamera Kameras fix,goods,small,use,lay,gift
        key keys m Schlüssel Schlüssels Schlüssel small,lay,use
        bag bags f Tasche Tasche Taschen pack,open,goods,small
        suitcase suitcases m Koffer Koffers Koffer pack,open,goods
        box boxes f Kiste Kiste Kisten pack,open
        umbrella umbrellas m Regenschirm Regenschirms Regenschirme small,goods
        cup cups f Tasse Tasse Tassen dish,goods
        plate plates m Teller Tellers Teller dish,goods
        glass glasses n Glas Glases Gläser dish
        bottle bottles f Flasche Flasche Flaschen dish,open
        knife knives n Messer Messers Messer dish,lay,use
        spoon spoons m Löffel Löffels Löffel dish,lay,use
        pencil pencils m Bleistift Bleistifts Bleistifte small,lay,use,gift
        picture pictures n Bild Bildes Bilder view,goods,gift
        photo photos n Foto Fotos Fotos view,lay,sent
        map maps f Landkarte Landkarte Landkarten view,lay,small
        gift gifts n Geschenk Geschenks Geschenke pack,open,goods,sent,gift
        ball balls m Ball Balles Bälle toy,small,gift
        doll dolls f Puppe Puppe Puppen toy,goods,gift
        flower flowers f Blume Blume Blumen goods,gift
    """,
    "opening": """
        door doors f Tür Tür Türen open
        window windows n Fenster Fensters Fenster open
    """,
    "furniture": """
        table tables m Tisch Tisches Tische goods
        chair chairs m Stuhl Stuhls Stühle goods
        bed beds n Bett Bettes Betten goods
        sofa sofas n Sofa Sofas Sofas goods
    """,
    "clothes": """
        shirt shirts n Hemd Hemdes Hemden
        coat coats m Mantel Mantels Mäntel
        dress dresses n Kleid Kleides Kleider
        skirt skirts m Rock Rockes Röcke
        hat hats m Hut Hutes Hüte
        shoe shoes m Schuh Schuhs Schuhe
        jacket jackets f Jacke Jacke Jacken
        sweater sweaters m Pullover Pullovers Pullover
    """,
    "vehicle": """
        car cars n Auto Autos Autos owned
        bicycle bicycles n Fahrrad Fahrrads Fahrräder owned
        boat boats n Boot Bootes Boote owned
        bus buses m Bus Busses Busse public
        train trains m Zug Zuges Züge public
        ship ships n Schiff Schiffes Schiffe public
        airplane airplanes n Flugzeug Flugzeugs Flugzeuge public
    """,
    "event": """
        concert concerts n Konzert Konzerts Konzerte
        film films m Film Films Filme
        exam exams f Prüfung Prüfung Prüfungen
        wedding weddings f Hochzeit Hochzeit Hochzeiten
        meeting meetings f Besprechung Besprechung Besprechungen
        game games n Spiel Spiels Spiele
    """,
    "cause": """
        weather - n Wetter Wetters -
        rain - m Regen Regens -
        noise - m Lärm Lärms -
        storm - m Sturm Sturmes -
    """,
}

# Places: the English and the German preposition of rest, then a noun as above; "dwelling" marks where one lives.
PLACES = {
    "home": """
        in in house houses n Haus Hauses Häuser dwelling
        in in kitchen kitchens f Küche Küche Küchen
        in in garden gardens m Garten Gartens Gärten
        in in living_room living_rooms n Wohnzimmer Wohnzimmers Wohnzimmer
        in in room rooms n Zimmer Zimmers Zimmer
    """,
    "shop": """
        in in shop shops m Laden Ladens Läden
        in in supermarket supermarkets m Supermarkt Supermarktes Supermärkte
        at auf market markets m Markt Marktes Märkte
    """,
    "study": """
        in in library libraries f Bibliothek Bibliothek Bibliotheken
        in in school schools f Schule Schule Schulen
        in in office offices n Büro Büros Büros
        at an university universities f Universität Universität Universitäten
    """,
    "outdoors": """
        in in park parks m Park Parks Parks
        in in forest forests m Wald Waldes Wälder
        in in city cities f Stadt Stadt Städte dwelling
        in in village villages n Dorf Dorfes Dörfer dwelling
        on an beach beaches m Strand Strandes Strände
        on auf street streets f Straße Straße Straßen
        on auf bridge bridges f Brücke Brücke Brücken
        on auf island islands f Insel Insel Inseln dwelling
    """,
    "station": """
        at an station stations m Bahnhof Bahnhofs Bahnhöfe
        at an airport airports m Flughafen Flughafens Flughäfen
    """,
    "town": """
        in in hotel hotels n Hotel Hotels Hotels dwelling
        in in restaurant restaurants n Restaurant Restaurants Restaurants
        in in museum museums n Museum Museums Museen
        in in church churches f Kirche Kirche Kirchen
        in in hospital hospitals n Krankenhaus Krankenhauses Krankenhäuser
        in in castle castles n Schloss Schlosses Schlösser dwelling
        in in theater theaters n Theater Theaters Theater
    """,
    "bathing": """
        in in lake lakes m See Sees Seen
        in in river rivers m Fluss Flusses Flüsse
        in in sea - n Meer Meeres -
    """,
}

# Adjectives: English positive, comparative; German positive, comparative; the kinds of noun that it may describe.
ADJECTIVES = """
    old older alt älter person,animal,thing,clothes,vehicle,place
    young younger jung jünger person,animal
    tall taller groß größer person
    friendly friendlier freundlich freundlicher person
    famous more_famous berühmt berühmter person
    clever cleverer klug klüger person,animal
    rich richer reich reicher person
    poor poorer arm ärmer person
    strong stronger stark stärker person,animal
    polite more_polite höflich höflicher person
    brave braver mutig mutiger person
    curious more_curious neugierig neugieriger person,animal
    nice nicer nett netter person
    tired more_tired müde müder person,animal,state
    happy happier glücklich glücklicher person,state
    sick sicker krank kränker person,animal,state
    hungry hungrier hungrig hungriger person,animal,state
    sad sadder traurig trauriger person,state
    healthy healthier gesund gesünder person,animal,state
    thirsty thirstier durstig durstiger person,animal,state
    big bigger groß größer animal,thing,vehicle,place
    small smaller klein kleiner animal,thing,vehicle,place
    new newer neu neuer thing,clothes,text,vehicle,place
    expensive more_expensive teuer teurer thing,clothes,food,vehicle
    cheap cheaper billig billiger thing,clothes,food,vehicle
    heavy heavier schwer schwerer thing
    light lighter leicht leichter thing
    beautiful more_beautiful schön schöner animal,thing,clothes,place
    elegant more_elegant elegant eleganter clothes
    modern more_modern modern moderner thing,vehicle,place
    red redder rot röter thing,clothes,vehicle,color
    blue bluer blau blauer thing,clothes,vehicle,color
    green greener grün grüner thing,clothes,vehicle,color
    black blacker schwarz schwärzer animal,thing,clothes,vehicle,color
    white whiter weiß weißer animal,thing,clothes,vehicle,color
    brown browner braun brauner animal,clothes,color
    warm warmer warm wärmer clothes,food,drink,weather
    cold colder kalt kälter food,drink,weather
    fresh fresher frisch frischer food,drink
    good better gut besser food,drink,text
    delicious more_delicious lecker leckerer food
    hot hotter heiß heißer drink,weather
    sweet sweeter süß süßer drink
    interesting more_interesting interessant interessanter text,event
    boring more_boring langweilig langweiliger text,event
    important more_important wichtig wichtiger text,event
    long longer lang länger text,event
    short shorter kurz kürzer text,event
    funny funnier lustig lustiger text,person
    fast faster schnell schneller animal,vehicle
    slow slower langsam langsamer animal,vehicle
    quiet quieter ruhig ruhiger place
    empty emptier leer leerer place
    dark darker dunkel dunkler place,weather
"""

# Verbs: English base, past; German infinitive (| after a separable prefix), third person, participle, h(aben)/s(ein);
# use: a(ny mood), e(vent without will: no modals), s(tate: present and past only, German preterite given last after /).
# Then, by frame, which nouns it takes and where it happens; "-" is nothing. In the English, "_" ties a preposition or
# particle that stands before the object, "~" a particle that stands after a pronoun ("picks him up").
TRANSITIVE = """
    see saw sehen sieht gesehen h e person,animal,vehicle outdoors
    hear heard hören hört gehört h e person,animal -
    buy bought kaufen kauft gekauft h a goods,food,drink,clothes,text,owned shop
    sell sold verkaufen verkauft verkauft h a goods,owned,clothes shop
    find found finden findet gefunden h e small,clothes,pet outdoors
    need needed brauchen braucht gebraucht h s/brauchte goods,use,clothes,dish -
    have had haben hat gehabt h s/hatte pet,goods,owned,small,clothes -
    look_for looked suchen sucht gesucht h a small,person,pet,clothes outdoors
    lose lost verlieren verliert verloren h e small,clothes outdoors
    forget forgot vergessen vergisst vergessen h e small,clothes -
    eat ate essen isst gegessen h a food home
    drink drank trinken trinkt getrunken h a drink home
    cook cooked kochen kocht gekocht h a cooked home
    bake baked backen backt gebacken h a baked home
    order ordered bestellen bestellt bestellt h a food,drink -
    taste tasted probieren probiert probiert h a food,drink -
    read read lesen liest gelesen h a text study
    write wrote schreiben schreibt geschrieben h a written study
    wear wore tragen trägt getragen h a clothes -
    wash washed waschen wäscht gewaschen h a clothes,dish,owned -
    repair repaired reparieren repariert repariert h a fix,vehicle -
    draw drew zeichnen zeichnet gezeichnet h a animal,vehicle,flower -
    use used benutzen benutzt benutzt h a use -
    hide hid verstecken versteckt versteckt h a small,toy home
    feed fed füttern füttert gefüttert h a animal outdoors
    visit visited besuchen besucht besucht h a person -
    know knew kennen kennt gekannt h s/kannte person -
    love loved lieben liebt geliebt h s/liebte person,pet -
    like liked mögen mag gemocht h s/mochte food,drink,animal,text -
    meet met treffen trifft getroffen h a person outdoors
    understand understood verstehen versteht verstanden h e person,text -
    ask asked fragen fragt gefragt h a person -
    greet greeted begrüßen begrüßt begrüßt h a person -
    invite invited ein|laden lädt eingeladen h a person -
    call called an|rufen ruft angerufen h a person -
    pick~up picked ab|holen holt abgeholt h a person station
    open opened auf|machen macht aufgemacht h a open -
    close closed zu|machen macht zugemacht h a open -
    turn_on turned ein|schalten schaltet eingeschaltet h a machine -
    turn_off turned aus|schalten schaltet ausgeschaltet h a machine -
    put_on put an|ziehen zieht angezogen h a clothes -
    take_off took aus|ziehen zieht ausgezogen h a clothes -
    try_on tried an|probieren probiert anprobiert h a clothes shop
    throw_away threw weg|werfen wirft weggeworfen h a small,toy -
    take_along took mit|nehmen nimmt mitgenommen h a small,clothes,toy -
    look_at looked an|sehen sieht angesehen h a view,animal -
    unpack unpacked aus|packen packt ausgepackt h a pack home
"""

DATIVE = """
    help helped helfen hilft geholfen h a person -
    thank thanked danken dankt gedankt h a person -
    listen_to listened zu|hören hört zugehört h a person -
    follow followed folgen folgt gefolgt s a person,pet -
    answer answered antworten antwortet geantwortet h a person -
"""

DITRANSITIVE = """
    give gave geben gibt gegeben h a gift,drink,fruit -
    show showed zeigen zeigt gezeigt h a view,small,text -
    send sent schicken schickt geschickt h a sent -
    bring brought bringen bringt gebracht h a food,drink,gift -
    lend lent leihen leiht geliehen h a owned,small,clothes -
    tell told erzählen erzählt erzählt h a story -
"""

# The German preposition and its case (3 dative, 4 accusative) follow the place.
PREPOSITIONAL = """
    wait_for waited warten wartet gewartet h a person,public - auf 4
    speak_with spoke sprechen spricht gesprochen h a person - mit 3
    think_of thought denken denkt gedacht h a person,pet - an 4
    dream_of dreamed träumen träumt geträumt h e person,pet - von 3
    play_with played spielen spielt gespielt h a pet,toy - mit 3
    laugh_about laughed lachen lacht gelacht h a text - über 4
"""

# Manner adverbs that fit follow the places.
INTRANSITIVE = """
    sleep slept schlafen schläft geschlafen h a home,town well
    work worked arbeiten arbeitet gearbeitet h a study,town,city slowly,well
    sing sang singen singt gesungen h a home,outdoors loudly,quietly,well
    dance danced tanzen tanzt getanzt h a home,outdoors well,slowly
    laugh laughed lachen lacht gelacht h a home,study loudly,quietly
    cry cried weinen weint geweint h e home,outdoors loudly,quietly
    wait waited warten wartet gewartet h a station,outdoors,town -
    play played spielen spielt gespielt h a home,outdoors quietly,loudly
    swim swam schwimmen schwimmt geschwommen s a bathing quickly,slowly,well
    sit sat sitzen sitzt gesessen h a home,outdoors quietly
    stand stood stehen steht gestanden h a outdoors,station quietly
    get_up got auf|stehen steht aufgestanden s a - quickly,slowly
    fall_asleep fell ein|schlafen schläft eingeschlafen s e home,town quickly
    arrive arrived an|kommen kommt angekommen s e station,city -
    stay stayed bleiben bleibt geblieben s a home,town,city -
    live lived wohnen wohnt gewohnt h s/wohnte city,dwelling -
"""

# Which destinations: to (zu), into (in), person (to the doctor), city (to Berlin).
MOTION = """
    go went gehen geht gegangen s a to,into,person
    run ran laufen läuft gelaufen s a to,into
    come came kommen kommt gekommen s a to,into,city
    drive drove fahren fährt gefahren s a to,person,city
    travel traveled reisen reist gereist s a city
    fly flew fliegen fliegt geflogen s a city
"""

# Verbs before a clause or a zu-infinitive.
CLAUSAL = """
    say said sagen sagt gesagt h e that
    believe believed glauben glaubt geglaubt h e that
    hope hoped hoffen hofft gehofft h e hope,to
    know knew wissen weiß gewusst h s/wusste that,whether
    forget forgot vergessen vergisst vergessen h e that,to
    ask asked fragen fragt gefragt h e whether
    try tried versuchen versucht versucht h e to
    promise promised versprechen verspricht versprochen h e hope,to
    begin began beginnen beginnt begonnen h e to
"""

# Single verbs that only one construction uses.
PUT = "put put legen legt gelegt h a"
BE = "be was sein ist gewesen s s/war"
BECOME = "become became werden wird geworden s a"
RAIN = "rain rained regnen regnet geregnet h e"
SNOW = "snow snowed schneien schneit geschneit h e"
DEPART = "depart departed ab|fahren fährt abgefahren s e"

PRONOUN_TABLE = """
    I me ich mich mir 0
    you you du dich dir 1
    he him er ihn ihm 2
    she her sie sie ihr 2
    we us wir uns uns 3
    they them sie sie ihnen 4
"""

NAMES = (("Peter", 0), ("Paul", 0), ("Thomas", 0), ("Felix", 0), ("Anna", 1), ("Maria", 1), ("Julia", 1), ("Laura", 1))
CITIES = (
    *(("Berlin", "Berlin"), ("Hamburg", "Hamburg"), ("London", "London"), ("Paris", "Paris"), ("Rome", "Rom")),
    *(("Munich", "München"), ("Vienna", "Wien"), ("Germany", "Deutschland"), ("France", "Frankreich")),
    ("Italy", "Italien"),
)
NUMBERS = (
    *(("two", "zwei"), ("three", "drei"), ("four", "vier"), ("five", "fünf"), ("six", "sechs"), ("seven", "sieben")),
    *(("eight", "acht"), ("nine", "neun"), ("ten", "zehn"), ("eleven", "elf"), ("twelve", "zwölf")),
)
MANNERS = {"well": "gut", "loudly": "laut", "quietly": "leise", "quickly": "schnell", "slowly": "langsam"}
FREQUENCIES = (
    *(("always", "immer"), ("often", "oft"), ("sometimes", "manchmal"), ("never", "nie"), ("usually", "meistens")),
    ("rarely", "selten"),
)
DAYS = (
    *(("Monday", "Montag"), ("Tuesday", "Dienstag"), ("Wednesday", "Mittwoch"), ("Thursday", "Donnerstag")),
    *(("Friday", "Freitag"), ("Saturday", "Samstag"), ("Sunday", "Sonntag")),
)
TIMES = {
    "present": (
        *(("every day", "jeden Tag"), ("every morning", "jeden Morgen"), ("every evening", "jeden Abend")),
        *(("every week", "jede Woche"), ("every month", "jeden Monat"), ("every year", "jedes Jahr")),
        *(("in the morning", "am Morgen"), ("in the evening", "am Abend"), ("today", "heute")),
        *(("in summer", "im Sommer"), ("in winter", "im Winter")),
        *((f"on {en}s", f"{de.lower()}s") for en, de in DAYS),
    ),
    "past": (
        *(("yesterday", "gestern"), ("yesterday evening", "gestern Abend"), ("last week", "letzte Woche")),
        *(("last month", "letzten Monat"), ("last year", "letztes Jahr"), ("last summer", "letzten Sommer")),
        *(("last winter", "letzten Winter"), ("this morning", "heute Morgen")),
        *((f"on {en}", f"am {de}") for en, de in DAYS),
        *((f"{en} days ago", f"vor {de} Tagen") for en, de in NUMBERS[:6]),
    ),
    "future": (
        *(("tomorrow", "morgen"), ("tomorrow evening", "morgen Abend"), ("next week", "nächste Woche")),
        *(("next month", "nächsten Monat"), ("next year", "nächstes Jahr"), ("next summer", "nächsten Sommer")),
        *(("next winter", "nächsten Winter"), ("soon", "bald"), ("this evening", "heute Abend")),
        *((f"on {en}", f"am {de}") for en, de in DAYS),
        *((f"in {en} days", f"in {de} Tagen") for en, de in NUMBERS[:6]),
    ),
}
CLOCK = tuple((f"at {en} o'clock", f"um {de} Uhr") for en, de in NUMBERS)

# Rows: masculine, feminine, neuter, plural; columns: nominative, accusative, dative, genitive.
Declension = tuple[tuple[str, str, str, str], ...]
DEFINITE: Declension = (
    ("der", "den", "dem", "des"),
    ("die", "die", "der", "der"),
    ("das", "das", "dem", "des"),
    ("die", "die", "den", "der"),
)
STRONG: Declension = (("er", "en", "em", "en"), ("e", "e", "er", "er"), ("es", "es", "em", "en"), ("e", "e", "en", "er"))
WEAK: Declension = (("e", "en", "en", "en"), ("e", "e", "en", "en"), ("e", "e", "en", "en"), ("en",) * 4)
MIXED: Declension = (("er", "en", "en", "en"), ("e", "e", "en", "en"), ("es", "es", "en", "en"), ("en",) * 4)
DER_WORD: Declension = (("er", "en", "em", "es"), STRONG[1], ("es", "es", "em", "es"), STRONG[3])
EIN_WORD: Declension = (("", "en", "em", "es"), STRONG[1], ("", "", "em", "es"), STRONG[3])
RELATIVE = (("der", "den", "dem"), ("die", "die", "der"), ("das", "das", "dem"), ("die", "die", "denen"))
CONTRACTIONS = {"in dem": "im", "an dem": "am", "in das": "ins", "an das": "ans", "zu dem": "zum", "zu der": "zur"}
CONTRACTIONS |= {"von dem": "vom"}


class Noun(NamedTuple):
    """A noun with its German forms by case; ``mass`` ones have no plural. ``prepositions`` is for places only."""

    kind: str
    english: str
    english_plural: str
    gender: int
    singular: tuple[str, ...]
    plural: tuple[str, ...]
    mass: bool
    prepositions: tuple[str, str]


class Adjective(NamedTuple):
    """An adjective; ``stem`` is what the German endings are added to (teuer: teur-)."""

    english: str
    english_comparative: str
    german: str
    comparative: str
    stem: str


class Determiner(NamedTuple):
    """What stands before a noun: English singular and plural, German by gender and case, the adjective endings."""

    english: str
    english_plural: str
    german: Declension
    endings: Declension


class Pronoun(NamedTuple):
    """A personal pronoun: English subject and object form, German by case, grammatical person 0..4."""

    english: str
    english_object: str
    german: tuple[str, str, str]
    person: int


class Verb(NamedTuple):
    """A verb in both languages. ``english[mood][person]`` is what ``english_forms`` returns, ``german[mood][person]``
    what ``german_forms`` returns; ``moves`` says that ``rest`` follows a pronoun object. ``use`` is its column of the
    table, ``tags`` and ``nouns`` what its frame takes (objects or places), ``extra`` the columns after these."""

    base: str
    rest: str
    moves: bool
    same_past: bool
    english: dict[str, tuple[tuple[str, str, str, str], ...]]
    german: dict[str, tuple[tuple[str, str, str], ...]]
    zu: str
    use: str
    tags: tuple[str, ...]
    nouns: tuple[Noun, ...]
    extra: tuple[str, ...]


def rows(table: str) -> list[list[str]]:
    """The cells of each line of a table."""
    return [line.split() for line in table.strip().splitlines()]


def noun_forms(gender: int, nominative: str, genitive: str, plural: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(singular, plural) by case. A masculine without genitive -s is weak; the dative plural adds -n."""
    oblique = genitive if gender == 0 and not genitive.endswith("s") else nominative
    dative_plural = plural if plural.endswith(("n", "s")) else plural + "n"
    return (nominative, oblique, oblique, genitive), (plural, plural, dative_plural, plural)


def parse_noun(kind: str, cells: list[str], prepositions: tuple[str, str] = ("", "")) -> Noun:
    """A noun from its line."""
    english, english_plural, letter, nominative, genitive, plural = cells[:6]
    gender = "mfn".index(letter)
    singular_forms, plural_forms = noun_forms(gender, nominative, genitive, plural)
    english, english_plural = english.replace("_", " "), english_plural.replace("_", " ")
    return Noun(kind, english, english_plural, gender, singular_forms, plural_forms, plural == "-", prepositions)


def adjective_stem(german: str) -> str:
    """What endings are added to: dunkel, teuer lose an e (dunkl-, teur-), müde its last one (müd-)."""
    if german.endswith("e"):
        return german[:-1]
    return german[:-2] + german[-1] if german.endswith(("el", "euer")) else german


def english_third(base: str) -> str:
    """The third person singular: reads, goes, tries, has."""
    if base == "have":
        return "has"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + ("es" if base.endswith(("s", "x", "ch", "sh", "o")) else "s")


def german_present(infinitive: str, third: str) -> tuple[str, ...]:
    """ich, du, er, wir, sie of a verb without its prefix; du takes its vowel from the third person (du siehst)."""
    if infinitive == "sein":
        return ("bin", "bist", "ist", "sind", "sind")
    if infinitive in PRESENTS:
        return PRESENTS[infinitive]
    stem = infinitive.removesuffix("en") if infinitive.endswith("en") else infinitive.removesuffix("n")
    du = third if third[:-1].endswith(("s", "ß", "z", "x")) else third[:-1] + "st"
    return (stem + "e", du, third, infinitive, infinitive)


def german_preterite(first: str) -> tuple[str, ...]:
    """wohnte, wohntest, wohnte, wohnten, wohnten; war, warst, war, waren, waren."""
    plural = first + ("n" if first.endswith("e") else "en")
    return (first, first + "st", first, plural, plural)


# Presents that do not follow the rule; the modal verbs are keyed by the English construction they translate.
PRESENTS = {
    "haben": ("habe", "hast", "hat", "haben", "haben"),
    "werden": ("werde", "wirst", "wird", "werden", "werden"),
    "wissen": ("weiß", "weißt", "weiß", "wissen", "wissen"),
    "mögen": ("mag", "magst", "mag", "mögen", "mögen"),
}
MODALS: dict[str, tuple[str, ...]] = {
    "will": PRESENTS["werden"],
    "can": ("kann", "kannst", "kann", "können", "können"),
    "should": german_preterite("sollte"),
    "have to": ("muss", "musst", "muss", "müssen", "müssen"),
    "want to": ("will", "willst", "will", "wollen", "wollen"),
    "be allowed to": ("darf", "darfst", "darf", "dürfen", "dürfen"),
    "would like to": ("möchte", "möchtest", "möchte", "möchten", "möchten"),
    "had to": german_preterite("musste"),
    "wanted to": german_preterite("wollte"),
}
BE_PRESENT = ("am", "are", "is", "are", "are")
BE_PAST = ("was", "were", "was", "were", "were")


def english_forms(base: str, past: str, mood: str, person: int) -> tuple[str, str, str, str]:
    """(auxiliary, rest) of a statement, then (auxiliary, rest) where it is negated or asked: "", "reads", "does",
    "read". Adverbs such as "often" stand between the two."""
    does = "does" if person == THIRD else "do"
    if mood in ("present", "past"):
        if base == "be":
            be = (BE_PRESENT if mood == "present" else BE_PAST)[person]
            return be, "", be, ""
        present = english_third(base) if person == THIRD else base
        return ("", present, does, base) if mood == "present" else ("", past, "did", base)
    if mood in ("will", "can", "should"):
        return mood, base, mood, base
    if mood == "would like to":
        return "would", f"like to {base}", "would", f"like to {base}"
    if mood == "be allowed to":
        be = BE_PRESENT[person]
        return be, f"allowed to {base}", be, f"allowed to {base}"
    head, head_past = ("have", "had") if mood in ("have to", "had to") else ("want", "wanted")
    if mood in ("had to", "wanted to"):
        return "", f"{head_past} to {base}", "did", f"{head} to {base}"
    return "", f"{english_third(head) if person == THIRD else head} to {base}", does, f"{head} to {base}"


def parse_verb(cells: list[str], groups: dict[str, list[Noun]]) -> Verb:
    """A verb from its line, with every form computed."""
    english, past, german, third, participle, auxiliary, use_cell = cells[:7]
    use, _, preterite = use_cell.partition("/")
    moves = "~" in english
    base, *rest = english.replace("~", "_").split("_")
    prefix, _, simple = german.rpartition("|")
    present = german_present(simple, third)
    perfect = german_present("sein", "ist") if auxiliary == "s" else PRESENTS["haben"]

    def german_forms(mood: str, person: int) -> tuple[str, str, str]:
        """(finite verb, what closes the main clause, both as they end a subordinate clause)."""
        if mood == "present":
            return present[person], prefix, prefix + present[person]
        if mood == "past" and preterite:
            return (form := german_preterite(preterite)[person]), "", form
        finite, bracket = (perfect, participle) if mood == "past" else (MODALS[mood], prefix + simple)
        return finite[person], bracket, f"{bracket} {finite[person]}"

    moods = ("present", "past", *MODALS)
    return Verb(
        base=base,
        rest=" ".join(rest),
        moves=moves,
        same_past=base == past,
        english={mood: tuple(english_forms(base, past, mood, person) for person in range(5)) for mood in moods},
        german={mood: tuple(german_forms(mood, person) for person in range(5)) for mood in moods},
        zu=f"{prefix}zu{simple}" if prefix else f"zu {simple}",
        use=use,
        tags=(tags := tuple(cells[7].split(",")) if cells[7:] else ()),
        nouns=tuple({noun: None for tag in tags for noun in groups.get(tag, [])}),
        extra=tuple(cells[8:]),
    )


def declined(stem: str, endings: Declension) -> Declension:
    """An article or article-like word with its endings."""
    return tuple((stem + a, stem + b, stem + c, stem + d) for a, b, c, d in endings)


def uninflected(english: str, german: str) -> Determiner:
    """A number, "viele" aside: one form everywhere, and strong adjective endings after it."""
    return Determiner(english, english, ((german,) * 4,) * 4, STRONG)


THE = Determiner("the", "the", DEFINITE, WEAK)
A = Determiner("a", "", (*declined("ein", EIN_WORD)[:3], ("",) * 4), (*MIXED[:3], STRONG[3]))
NO = Determiner("a", "any", declined("kein", EIN_WORD), MIXED)
THIS = Determiner("this", "these", declined("dies", DER_WORD), WEAK)
EVERY = Determiner("every", "", declined("jed", DER_WORD), WEAK)
WHICH = Determiner("which", "which", declined("welch", DER_WORD), WEAK)
MANY = Determiner("", "many", declined("viel", STRONG), STRONG)
HOW_MANY = Determiner("", "how many", declined("wie viel", STRONG), STRONG)
BARE = uninflected("", "")
COUNTS = tuple(uninflected(en, de) for en, de in NUMBERS)
POSSESSIVES = tuple(
    # "unser" keeps its e before endings (unsere, unseren), as most print does.
    Determiner(en, en, declined(de, EIN_WORD), MIXED)
    for en, de in (("my", "mein"), ("your", "dein"), ("his", "sein"), ("her", "ihr"), ("our", "unser"), ("their", "ihr"))
)


def noun_phrase(
    noun: Noun, determiner: Determiner, case: int, plural: bool = False, adjective: Adjective | None = None
) -> tuple[str, str]:
    """(English, German) of determiner, adjective and noun in a German case (NOM, ACC, DAT or GEN)."""
    column = PLURAL if plural else noun.gender
    german = noun.plural[case] if plural else noun.singular[case]
    english = noun.english_plural if plural else noun.english
    if adjective is not None:
        german = f"{adjective.stem}{determiner.endings[column][case]} {german}"
        english = f"{adjective.english} {english}"
    article = determiner.german[column][case]
    word = determiner.english_plural if plural or (noun.mass and determiner is NO) else determiner.english
    if word == "a":
        word = indefinite(english)
    return (f"{word} {english}" if word else english), (f"{article} {german}" if article else german)


def indefinite(english: str) -> str:
    """"a" or "an" before these words (a university)."""
    return "an" if english[0] in "aeiou" and not english.startswith("uni") else "a"


def contract(preposition: str, phrase: str) -> str:
    """A German preposition before a phrase, joined with a following definite article where usage does so (im, zur)."""
    article, _, rest = phrase.partition(" ")
    joined = CONTRACTIONS.get(f"{preposition} {article}")
    return f"{joined} {rest}" if joined else f"{preposition} {phrase}"


def _groups() -> dict[str, list[Noun]]:
    """Nouns by kind and by tag; all people together as "person"; places by their class."""
    groups: dict[str, list[Noun]] = {}
    for kind, table in NOUNS.items():
        person = kind in ("kin", "social", "role")
        for cells in rows(table):
            noun = parse_noun(kind, cells)
            tags = [kind, *(["person"] if person else []), *(cells[6].split(",") if cells[6:] else []), noun.english]
            for tag in tags:
                groups.setdefault(tag, []).append(noun)
    for kind, table in PLACES.items():
        for cells in rows(table):
            noun = parse_noun("place", cells[2:], (cells[0], cells[1]))
            for tag in (kind, *cells[8:]):
                groups.setdefault(tag, []).append(noun)
    by_name = {noun.english: noun for noun in (*groups["outdoors"], *groups["home"])}
    groups["settlement"] = [by_name[name] for name in ("city", "village", "island")]
    groups["open_air"] = [by_name[name] for name in ("garden", "park", "forest", "village", "beach", "island")]
    return groups


def _adjectives() -> dict[str, list[Adjective]]:
    """Adjectives by the kind of noun that they describe."""
    by_kind: dict[str, list[Adjective]] = {}
    for english, comparative, german, german_comparative, kinds in rows(ADJECTIVES):
        comparative = comparative.replace("_", " ")
        adjective = Adjective(english, comparative, german, german_comparative, adjective_stem(german))
        for kind in kinds.split(","):
            by_kind.setdefault(kind, []).append(adjective)
    for kind in ("kin", "social", "role"):
        by_kind[kind] = by_kind["person"]
    by_kind["furniture"] = by_kind["thing"]
    by_kind["opening"] = [adjective for adjective in by_kind["thing"] if adjective.english not in ("heavy", "light")]
    return by_kind


GROUPS = _groups()
ADJECTIVES_OF = _adjectives()
PRONOUNS = tuple(Pronoun(en, obj, (nom, acc, dat), int(p)) for en, obj, nom, acc, dat, p in rows(PRONOUN_TABLE))
FRAMES = {
    name: tuple(parse_verb(cells, GROUPS) for cells in rows(table))
    for name, table in (
        ("transitive", TRANSITIVE),
        ("dative", DATIVE),
        ("ditransitive", DITRANSITIVE),
        ("prepositional", PREPOSITIONAL),
        ("intransitive", INTRANSITIVE),
        ("motion", MOTION),
        ("clausal", CLAUSAL),
        ("single", "\n".join((BE, PUT, BECOME, RAIN, SNOW, DEPART))),
    )
}
