"""The words of the embedded corpus (bmscale.data.toy) as tables, one line a word; ``_`` stands for a blank.

Words are chosen one-to-one between the languages, so that English decides the German. ``toy_inflection`` computes the
forms that the tables do not hold.
"""

from __future__ import annotations

from bmscale.data.toy_inflection import Adjective, Noun, Pronoun, adjective_stem, parse_noun, parse_verb, uninflected

PEOPLE = ("kin", "social", "role", "youth")

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
        friend friends m Freund Freundes Freunde host
        neighbor neighbors m Nachbar Nachbarn Nachbarn host
        colleague colleagues m Kollege Kollegen Kollegen host
        teacher teachers m Lehrer Lehrers Lehrer profession,host
        doctor doctors m Arzt Arztes Ärzte profession,host
        guest guests m Gast Gastes Gäste
    """,
    "role": """
        man men m Mann Mannes Männer
        woman women f Frau Frau Frauen
        student students m Student Studenten Studenten
        nurse nurses f Krankenschwester Krankenschwester Krankenschwestern
        baker bakers m Bäcker Bäckers Bäcker profession
        farmer farmers m Bauer Bauern Bauern profession
        policeman policemen m Polizist Polizisten Polizisten profession
        artist artists m Künstler Künstlers Künstler profession
        tourist tourists m Tourist Touristen Touristen
        engineer engineers m Ingenieur Ingenieurs Ingenieure profession
    """,
    "youth": """
        child children n Kind Kindes Kinder
        boy boys m Junge Jungen Jungen
        girl girls n Mädchen Mädchens Mädchen
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
        soup - f Suppe Suppe - cooked
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
        book books n Buch Buches Bücher lay,small,printed
        letter letters m Brief Briefes Briefe lay,written,open,sent
        poem poems n Gedicht Gedichts Gedichte written
        story stories f Geschichte Geschichte Geschichten written,told
        message messages f Nachricht Nachricht Nachrichten written,sent,told
        report reports m Bericht Berichts Berichte written,sent
        novel novels m Roman Romans Romane written,lay,printed
    """,
    "press": """
        newspaper newspapers f Zeitung Zeitung Zeitungen text,lay,printed
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
        bag bags f Tasche Tasche Taschen pack,open,close,goods,small
        suitcase suitcases m Koffer Koffers Koffer pack,open,close,goods
        box boxes f Kiste Kiste Kisten pack,open,close
        umbrella umbrellas m Regenschirm Regenschirms Regenschirme small,goods
        cup cups f Tasse Tasse Tassen dish,goods
        plate plates m Teller Tellers Teller dish,goods
        glass glasses n Glas Glases Gläser dish
        bottle bottles f Flasche Flasche Flaschen dish,open,close
        knife knives n Messer Messers Messer dish,lay,use
        spoon spoons m Löffel Löffels Löffel dish,lay,use
        pencil pencils m Bleistift Bleistifts Bleistifte small,lay,use,gift
        picture pictures n Bild Bildes Bilder view,goods,gift
        photo photos n Foto Fotos Fotos view,lay,sent
        map maps f Landkarte Landkarte Landkarten view,lay,small
        gift gifts n Geschenk Geschenks Geschenke pack,open,goods,sent,gift
        ball balls m Ball Balles Bälle toy,small,gift
        doll dolls f Puppe Puppe Puppen toy,goods,gift
    """,
    "plant": """
        flower flowers f Blume Blume Blumen goods,gift
    """,
    "opening": """
        door doors f Tür Tür Türen open,close
        window windows n Fenster Fensters Fenster open,close
    """,
    "furniture": """
        table tables m Tisch Tisches Tische goods
        chair chairs m Stuhl Stuhls Stühle goods
        bed beds n Bett Bettes Betten goods
        sofa sofas n Sofa Sofas Sofas goods
    """,
    "clothes": """
        shirt shirts n Hemd Hemdes Hemden garment
        coat coats m Mantel Mantels Mäntel garment
        glove gloves m Handschuh Handschuhs Handschuhe garment,pair
        sock socks f Socke Socke Socken garment,pair
        hat hats m Hut Hutes Hüte
        shoe shoes m Schuh Schuhs Schuhe garment,pair
        jacket jackets f Jacke Jacke Jacken garment
        sweater sweaters m Pullover Pullovers Pullover garment
    """,
    "vehicle": """
        car cars n Auto Autos Autos owned
        bicycle bicycles n Fahrrad Fahrrads Fahrräder owned
        boat boats n Boot Bootes Boote owned,afloat
        bus buses m Bus Busses Busse public
        train trains m Zug Zuges Züge public
        ship ships n Schiff Schiffes Schiffe public,afloat
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
        rain - m Regen Regens -
        noise - m Lärm Lärms -
        storm - m Sturm Sturmes -
    """,
}

# Places: the English and the German preposition of rest, then a noun as above; tags: where one
# lives, what is nature (no "modern beach"), where one goes, where one cooks.
PLACES = {
    "home": """
        in in house houses n Haus Hauses Häuser dwelling
        in in kitchen kitchens f Küche Küche Küchen hearth
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
        in in park parks m Park Parks Parks nature,goal
        in in forest forests m Wald Waldes Wälder nature,goal
        in in city cities f Stadt Stadt Städte dwelling
        in in village villages n Dorf Dorfes Dörfer dwelling
        on an beach beaches m Strand Strandes Strände nature,goal
        on auf street streets f Straße Straße Straßen
        on auf bridge bridges f Brücke Brücke Brücken goal
        on auf island islands f Insel Insel Inseln dwelling,nature
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
        in in hospital hospitals n Krankenhaus Krankenhauses Krankenhäuser goal
        in in castle castles n Schloss Schlosses Schlösser dwelling
        in in theater theaters n Theater Theaters Theater
    """,
    "bathing": """
        in in lake lakes m See Sees Seen nature
        in in river rivers m Fluss Flusses Flüsse nature
        in in sea - n Meer Meeres - nature
    """,
}

# Adjectives: English positive, comparative; German positive, comparative; the kinds of noun that it may describe.
ADJECTIVES = """
    old older alt älter person,animal,thing,clothes,vehicle,place,compare
    young younger jung jünger person,animal,compare
    tall taller groß größer person,compare
    friendly friendlier freundlich freundlicher person,compare
    famous more_famous berühmt berühmter person
    clever cleverer klug klüger person,animal,compare
    rich richer reich reicher person,compare
    poor poorer arm ärmer person,compare
    strong stronger stark stärker person,animal,compare
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
    big bigger groß größer plant,nature,animal,thing,vehicle,place
    small smaller klein kleiner plant,nature,animal,thing,vehicle,place
    new newer neu neuer thing,clothes,text,vehicle,place,compare
    expensive more_expensive teuer teurer plant,thing,clothes,food,vehicle,compare
    cheap cheaper billig billiger plant,thing,clothes,food,vehicle,compare
    heavy heavier schwer schwerer thing,compare
    light lighter leicht leichter thing,compare
    beautiful more_beautiful schön schöner plant,nature,animal,thing,clothes,place,compare
    modern more_modern modern moderner vehicle,place
    red redder rot röter plant,thing,clothes,vehicle,color
    blue bluer blau blauer plant,thing,clothes,vehicle,color
    green greener grün grüner thing,clothes,vehicle,color
    black blacker schwarz schwärzer animal,thing,clothes,vehicle,color
    white whiter weiß weißer plant,animal,thing,clothes,vehicle,color
    brown browner braun brauner animal,clothes,color
    warm warmer warm wärmer clothes,food,drink,weather,compare
    cold colder kalt kälter food,drink,weather
    fresh fresher frisch frischer food,drink
    good better gut besser food,drink,text
    delicious more_delicious lecker leckerer food
    hot hotter heiß heißer weather
    interesting more_interesting interessant interessanter text,event
    boring more_boring langweilig langweiliger text,event
    important more_important wichtig wichtiger text,event
    long longer lang länger text,event
    short shorter kurz kürzer text,event
    funny funnier lustig lustiger text,person
    fast faster schnell schneller animal,vehicle,compare
    slow slower langsam langsamer animal,vehicle,compare
    quiet quieter ruhig ruhiger place,nature
    empty emptier leer leerer place
    dark darker dunkel dunkler place,weather
"""

# Verbs: English base, past; German infinitive (| after a separable prefix), third person, participle, h(aben)/s(ein);
# use: a(ny mood), e(vent without will: no modals), s(tate: present and past only, German preterite given last after /).
# Then, by frame, which nouns it takes and where it happens; "-" is nothing. In the English, "_" ties a preposition or
# particle that stands before the object, "~" a particle that stands after it ("picks him up").
TRANSITIVE = """
    see saw sehen sieht gesehen h e person,animal,vehicle -
    hear heard hören hört gehört h e person,animal -
    buy bought kaufen kauft gekauft h a goods,food,drink,clothes,printed,owned shop
    sell sold verkaufen verkauft verkauft h a goods,owned,clothes shop
    find found finden findet gefunden h e small,clothes,pet outdoors
    need needed brauchen braucht gebraucht h s/brauchte goods,use,clothes,dish -
    have had haben hat gehabt h s/hatte pet,goods,owned,small,clothes -
    look_for looked suchen sucht gesucht h a small,person,pet,clothes outdoors
    lose lost verlieren verliert verloren h e small,clothes outdoors
    forget forgot vergessen vergisst vergessen h e small,clothes -
    eat ate essen isst gegessen h a food home
    drink drank trinken trinkt getrunken h a drink home
    cook cooked kochen kocht gekocht h a cooked hearth
    bake baked backen backt gebacken h a baked hearth
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
    feed fed füttern füttert gefüttert h a animal -
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
    close closed zu|machen macht zugemacht h a close -
    turn_on turned ein|schalten schaltet eingeschaltet h a machine -
    turn_off turned aus|schalten schaltet ausgeschaltet h a machine -
    put_on put an|ziehen zieht angezogen h a garment -
    take_off took aus|ziehen zieht ausgezogen h a garment -
    try_on tried an|probieren probiert anprobiert h a clothes shop
    throw_away threw weg|werfen wirft weggeworfen h a small,toy -
    take~along took mit|nehmen nimmt mitgenommen h a small,clothes,toy -
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
    think_of thought denken denkt gedacht h e person,pet - an 4
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
    sit sat sitzen sitzt gesessen h e home,outdoors -
    stand stood stehen steht gestanden h e outdoors,station -
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
HARBORS = tuple(city for city in CITIES if city[0] in ("Hamburg", "London"))
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


def rows(table: str) -> list[list[str]]:
    """The cells of each line of a table."""
    return [line.split() for line in table.strip().splitlines()]


def _groups() -> dict[str, list[Noun]]:
    """Nouns by kind and by tag; all people together as "person"; places by their class."""
    groups: dict[str, list[Noun]] = {}
    for kind, table in NOUNS.items():
        person = kind in PEOPLE
        for cells in rows(table):
            noun = parse_noun(kind, cells)
            tags = [kind, *(["person"] if person else []), *(cells[6].split(",") if cells[6:] else []), noun.english]
            for tag in tags:
                groups.setdefault(tag, []).append(noun)
    for kind, table in PLACES.items():
        for cells in rows(table):
            tags = [kind, *(cells[8].split(",") if cells[8:] else [])]
            noun = parse_noun("nature" if "nature" in tags else "place", cells[2:], (cells[0], cells[1]))
            for tag in tags:
                groups.setdefault(tag, []).append(noun)
    # "Ins Krankenhaus kommen" is to be admitted to it.
    groups["into"] = [noun for noun in (*groups["home"], *groups["town"]) if noun.english != "hospital"]
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
    for kind in PEOPLE:
        by_kind[kind] = by_kind["person"]
    # "Die große Schwester" is the older one.
    by_kind["kin"] = [adjective for adjective in by_kind["person"] if adjective.english != "tall"]
    by_kind["youth"] = [
        adjective for adjective in by_kind["person"] if adjective.english not in ("old", "rich", "famous")
    ]
    by_kind["press"] = [adjective for adjective in by_kind["text"] if adjective.english not in ("long", "short")]
    by_kind["furniture"] = by_kind["thing"]
    by_kind["opening"] = [adjective for adjective in by_kind["thing"] if adjective.english not in ("heavy", "light")]
    return by_kind


COUNTS = tuple(uninflected(en, de) for en, de in NUMBERS)
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
