"""Word lists of the `extract` recipe: a training world and a held-out world that share no entry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Words:
    """Lists that the values are composed from. In `places` the first word is the preposition; "#" and "%" of
    `phones` are digits (the second not 0 or 1)."""

    company_words: list[str]
    businesses: list[str]
    legal_forms: list[str]
    and_sons: list[str]
    mailboxes: list[str]
    providers: list[str]
    endings: list[str]
    phones: list[str]
    cities: list[str]
    roles: list[str]
    role_ranks: list[str]
    topics: list[str]
    topic_adjectives: list[str]
    topic_nouns: list[str]
    teams: list[str]
    rooms: list[str]
    cafes: list[str]
    place_words: list[str]
    online: list[str]
    streets: list[str]
    places: list[str]
    product_adjectives: list[str]
    product_nouns: list[str]


def _list(text: str) -> list[str]:
    return [entry.strip() for entry in text.replace("\n", ",").split(",") if entry.strip()]


@cache
def train() -> Words:
    """The words that training texts may use."""
    return Words(
        company_words=_list("""Acme, Northwind, Globex, Initech, Contoso, Umbra, Vertex, Pinnacle, Bluebird, Ironwood,
            Silverline, Redstone, Oakridge, Sunrise, Delta, Apex, Nimbus, Quantum, Horizon, Lighthouse, Polar, Summit,
            Evergreen, Crystal, Falcon, Atlas, Orion, Zenith, Cobalt, Maple, Harbor, Granite, Cedar, Beacon, Titan,
            Juniper, Lotus, Mosaic, Nova, Riverside, Sterling, Velvet, Willow, Copper Hill, Green Leaf,
            Blue Ocean, White Rabbit, Fox & Field, BrightPath, DataForge, CloudNine, SkyBridge, NetWorks, MediPlus,
            EcoHome, TechNova, AgroVita, Solaris, Lumina, Vega, Kestrel, Marlow, Hudson, Camden, Astra, Borealis,
            Cascade, Dynamo, Echo, Foundry, Gemini, Helix, Ivory, Jade, Lumen, Meridian, Nautilus, Opal, Prism,
            Quartz, Radius, Sapphire, Tundra, Unity, Vortex, Westfield, Xenon, Yellowstone, Zephyr, IBM, Siemens, Nokia,
            Philips, Bosch, Intel, Adobe, BMW, Nestlé, Pfizer, KLM, DHL"""),
        businesses=_list("""Logistics, Systems, Solutions, Foods, Media, Design, Consulting, Energy, Labs, Software,
            Bank, Motors, Textiles, Pharma, Robotics, Studios, Travel, Insurance, Partners, Electronics, Furniture,
            Analytics, Books, Bakery, Capital, Airlines, Engineering, Health, Hotels, Dental, University, Hospital,
            Law, Construction, Press, School, Gallery, Networks"""),
        legal_forms=["Ltd", "Inc", "Inc.", "GmbH", "LLC", "Corp", "SA", "Group", "AG", "Co"],
        and_sons=["& Sons", "Brothers", "and Partners", "& Co", "Associates", "Group", "Consulting"],
        mailboxes=["info", "office", "hello", "contact", "mail", "sales", "team", "support", "me", "post"],
        providers=["gmail.com", "outlook.com", "yahoo.com", "hotmail.com", "mail.com", "web.de", "example.com",
                   "icloud.com", "example.org"],
        endings=["com", "com", "com", "org", "net", "de", "fr", "co.uk", "io", "eu", "it", "pl"],
        phones=_list("""555-%###, %##-###-####, (%##) ###-####, %#########, +1 %## ### ####, +1-%##-###-####,
            +44 20 #### ####, 07### ######, 01## ### ####, 0###-######, +49 1## #######, 030 #######, 06 ## ## ## ##,
            +33 6 ## ## ## ##, %## ### ###, ### ####, +34 %## ### ###, 0%##/######, %##-####, +39 0# #### ####"""),
        cities=_list("""London, Paris, Berlin, Madrid, Rome, Vienna, Lyon, Boston, Chicago, Seattle, Denver, Dallas,
            New York, Los Angeles, San Francisco, San Diego, Miami, Toronto, Vancouver, Dublin, Glasgow, Leeds, Bristol,
            Manchester, Liverpool, Munich, Hamburg, Cologne, Frankfurt, Stuttgart, Dresden, Zurich, Geneva, Basel,
            Milan, Turin, Naples, Florence, Venice, Lisbon, Porto, Barcelona, Seville, Valencia, Bilbao, Amsterdam,
            Rotterdam, Utrecht, Brussels, Antwerp, Ghent, Warsaw, Krakow, Gdansk, Prague, Brno, Budapest, Athens,
            Istanbul, Ankara, Cairo, Nairobi, Lagos, Accra, Cape Town, Tokyo, Osaka, Kyoto, Seoul, Beijing, Shanghai,
            Hong Kong, Singapore, Bangkok, Hanoi, Jakarta, Manila, Mumbai, Delhi, Chennai, Sydney, Melbourne, Perth,
            Montreal, Houston, Phoenix, Atlanta, Portland, Austin, Detroit, Cleveland, Pittsburgh, Nashville, Oxford,
            Bath, York, Cardiff, Belfast, Cork, Galway, Marseille, Bordeaux, Lille, Nantes, Toulouse, Salzburg,
            Graz, Stockholm, Gothenburg, Helsinki, Turku, Tampere, Bucharest, Sofia, Zagreb, Rio de Janeiro,
            São Paulo, Buenos Aires, Santiago, Lima, Bogotá, Mexico City, Havana, Santa Fe, Salt Lake City, Kansas City"""),
        roles=_list("""accountant, nurse, dentist, plumber, electrician, teacher, lawyer, architect, software engineer,
            web developer, graphic designer, sales manager, project manager, product manager, marketing director,
            head of sales, head of HR, chief engineer, data scientist, data analyst, photographer, journalist, editor,
            chef, baker, florist, carpenter, mechanic, pilot, vet, surgeon, pharmacist, translator, consultant,
            financial advisor, estate agent, recruiter, office manager, receptionist, personal assistant, CEO, CFO, CTO,
            professor of physics, biologist, chemist, librarian, tax advisor, sales rep, account manager, buyer,
            warehouse manager, truck driver, gardener, tailor, music teacher, yoga instructor, physiotherapist,
            psychologist, social worker, insurance broker, event planner, UX designer, system administrator,
            security officer, quality inspector, head of marketing, team lead, research assistant, tour guide"""),
        role_ranks=["senior", "junior", "lead", "assistant", "freelance"],
        topics=_list("""budget, hiring plan, website, new logo, sales figures, contract, rent, roadmap, onboarding,
            holiday schedule, exam results, marketing campaign, annual report, trip to Norway, office move, thesis,
            product launch, wedding, school play, design review, job interview, performance review, sprint planning,
            tax return, kitchen renovation, birthday party, security audit, customer feedback, data migration,
            project kickoff, travel expenses, insurance claim, bug reports, price increase, summer festival, book club,
            new website, loan, mortgage, research grant, supplier contract, staff training, lease, team event,
            conference talk, garden, app release, warehouse, merger, invoice, quarterly numbers, parking situation"""),
        topic_adjectives=_list("""new, annual, quarterly, monthly, old, next, final, first, internal, joint, revised,
            updated, spring, summer, customer, marketing, sales, product, team, budget, project, website, delivery,
            training, safety, research, staff, office"""),
        topic_nouns=_list("""budget, report, plan, strategy, review, proposal, contract, design, numbers, survey,
            schedule, campaign, launch, results, policy, forecast, prototype, presentation, agenda, figures, goals,
            planning, update, draft, concept"""),
        teams=_list("""design team, sales team, marketing team, board, HR department, lawyers, developers, investors,
            finance team, support team, new interns, landlord, bank, tax office, accountant, dentist, architects"""),
        rooms=["Room", "room", "Meeting Room", "meeting room", "Conference Room", "conference room", "Building", "Hall",
               "Office", "office", "Suite"],
        cafes=["Cafe {word}", "Café {word}", "{word} Cafe", "{word} Coffee", "Hotel {word}", "Bistro {word}",
               "{word} Grill", "{word} Bar", "Pizzeria {word}", "Restaurant {word}"],
        place_words=_list("""Luna, Roma, Central, Park, Bella, Royal, Garden, Lotus, Verde, Paradiso, Alpha, Milano,
            Mozart, Victoria, Station, Rose, Maple, Oak, Church, Mill, King, Queen, Bridge, River, Lake, Sunset,
            Franklin, Lincoln, High, Elm, Cedar, Hill"""),
        online=["Zoom", "Teams", "Google Meet", "Skype", "Slack"],
        streets=["Street", "Road", "Avenue", "Lane", "Square"],
        places=_list("""at library, in lobby, in main office, at office, in canteen, at headquarters, at town hall,
            in cafeteria, at train station, at airport, in boardroom, at museum, at bakery, in small conference room,
            in courtyard, at hotel bar, in big meeting room, at university, at coffee shop, in kitchen, at gym,
            on third floor, in park, at Italian restaurant, at factory, at clinic, in basement, on terrace"""),
        product_adjectives=_list("""red, blue, green, black, white, grey, yellow, small, large, big, wooden, steel,
            plastic, cotton, leather, wool, glass, ceramic, metal, paper, wireless, electric, folding, portable, round,
            square, heavy, light, cheap, vintage, organic, waterproof, rubber, copper, silver, brown, pink, orange,
            striped, LED, USB, oak, bamboo, silk, stainless steel, A4, extra large, dark blue"""),
        product_nouns=_list("""mug, chair, table, desk, lamp, notebook, pen, pencil, backpack, jacket, shirt, T-shirt,
            keyboard, mouse pad, monitor, charger, cable, headset, kettle, teapot, plate, bowl, spoon, knife, bottle,
            towel, blanket, pillow, curtain, carpet, mirror, clock, shelf, cushion, bicycle, helmet, tent, sleeping bag,
            umbrella, scarf, hat, glove, boot, ladder, hammer, drill, screwdriver, paint brush, bucket, broom,
            flower pot, candle, picture frame, puzzle, board game, doll, teddy bear, phone case, printer, toner cartridge,
            envelope, folder, stapler, whiteboard, projector, camera, tripod, speaker, toaster, blender, frying pan,
            chocolate cake, pizza, sandwich, coffee machine, garden hose, office chair, desk lamp, battery, box, bench"""),
    )  # fmt: skip


@cache
def held() -> Words:
    """The words that only validation and test texts use."""
    return Words(
        company_words=_list("""Tidewater, Larkspur, Moonbeam, Stonebridge, Pelican, Wildflower, Cinder, Brambleton,
            Foxglove, Halcyon, Obsidian, Paragon, Rosewood, Tamarack, Wavecrest, Amberlight, Birchfield, Dovetail,
            Elderberry, Flintlock, Gullwing, Hazelnut, Isotope, Kingfisher, Lanternfish, Magpie, Nutmeg, Otter Creek,
            Plumtree, Ravenhurst, Sandpiper, Thistle, Umberto, Wren, Kodak, Volvo, Canon, Red Kite, Paper Moon"""),
        businesses=_list("""Shipping, Instruments, Brewery, Biotech, Outfitters, Aviation, Interiors, Publishing,
            Ceramics, Fisheries, Optics, Apparel, Security, Recycling, Mining, Archives, Finance, Dairy"""),
        legal_forms=["plc", "Limited", "BV", "Oy", "Pty", "AB", "SARL"],
        and_sons=["& Daughters", "Holdings", "Workshop", "and Friends", "Enterprises"],
        mailboxes=["enquiries", "desk", "reach", "bookings", "studio", "inbox"],
        providers=["proton.me", "gmx.net", "fastmail.com", "posteo.de", "zoho.com"],
        endings=["dk", "no", "nz", "biz", "ch", "co", "hu", "edu"],
        phones=_list("%##.###.####, +45 ## ## ## ##, +47 ### ## ###, +36 1 ### ####, 0800 ### ###, +61 4## ### ###, (0##) ### ####"),
        cities=_list("""Oslo, Bergen, Copenhagen, Aarhus, Auckland, Wellington, Brisbane, Adelaide, Tallinn, Riga, Vilnius,
            Ljubljana, Maribor, Szeged, Debrecen, Guadalajara, Puebla, Durban, Kigali, Tunis, Tbilisi, Baku, Almaty,
            Minneapolis, Milwaukee, Tucson, Omaha, Boise, Halifax, Calgary, Ottawa, Sheffield, Norwich, Plymouth,
            Aberdeen, Exeter, Innsbruck, Bern, Lausanne, Verona, Bologna, Granada, Malaga, Braga, Eindhoven, Leipzig,
            Bremen, Kiel, Rennes, Dijon, Reykjavik, Kuala Lumpur, Las Vegas, El Paso"""),
        roles=_list("""beekeeper, optician, midwife, roofer, paralegal, bookkeeper, sound engineer, head of logistics,
            landscape designer, copywriter, paediatrician, locksmith, welder, notary, sommelier, curator, geologist,
            customs broker, procurement manager, operations director, barista, film producer, stage designer,
            speech therapist, ski instructor, city planner, network engineer, COO, head of research, interpreter"""),
        role_ranks=["principal", "trainee", "deputy"],
        topics=_list("""pension scheme, choir rehearsal, roof repairs, fundraiser, election results, catering, scholarship,
            museum exhibition, flood damage, podcast, menu changes, solar panels, new uniforms, playground, patent
            application, bakery opening, translation, inventory, cycling tour, heating costs, visa, apprenticeships"""),
        topic_adjectives=_list("autumn, winter, regional, overdue, weekly, digital, membership, recycling, shipping, legal"),
        topic_nouns=_list("timeline, backlog, newsletter, statement, guidelines, checklist, estimates, workshop, brochure"),
        teams=_list("logistics team, press office, caterers, trustees, editors, parents, works council, plumber, auditors"),
        rooms=["Seminar Room", "Lab", "lecture hall", "Studio", "Auditorium", "workshop"],
        cafes=["{word} Tea House", "Brasserie {word}", "{word} Inn", "Trattoria {word}", "{word} Deli", "Pub {word}"],
        place_words=_list("""Aurora, Orchard, Pescara, Windmill, Juno, Harvest, Napoli, Chestnut, Dolphin, Abbey, Meadow,
            Linden, Market, Castle, Walnut, Ferry"""),
        online=["Webex", "FaceTime", "Discord"],
        streets=["Drive", "Close", "Court", "Boulevard"],
        places=_list("""at theatre, in greenhouse, at town archive, in staff room, at marina, at bus depot, in foyer,
            at sports club, in chapel, at community centre, on roof, at Thai restaurant, in reading room, at embassy"""),
        product_adjectives=_list("""purple, turquoise, beige, tall, narrow, marble, linen, enamel, velvet, foldable, spare,
            second-hand, cordless, magnetic, aluminium, thick, solar, insulated, hand-made, cork, golden, mini"""),
        product_nouns=_list("""vase, wardrobe, stool, thermos, raincoat, suitcase, violin, birdhouse, lantern, apron,
            corkscrew, tray, basket, doormat, scooter, microphone, router, hard drive, hammock, wheelbarrow, rug, jug,
            coat hanger, calculator, globe, sofa, saucepan, shower head, tablecloth, cheese board, cookbook, kayak"""),
    )  # fmt: skip
