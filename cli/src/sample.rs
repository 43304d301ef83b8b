//! A sample shop: a believable catalogue and some customers, made from a seed. All names are
//! invented.

use std::collections::HashSet;
use std::hash::Hash;
use std::str::FromStr;

use anyhow::Context as _;
use async_nats::jetstream::{self, stream::LastRawMessageErrorKind, stream::Stream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use millrace_shared::command::{Command, DefineProduct, KEY_HEADER, RegisterCustomer};
use millrace_shared::ids::{self, CustomerId, ProductId};
use millrace_shared::message::Subject;
use millrace_shared::money::{Currency, Money};
use millrace_shared::topology::Topology;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// The seed of the shop that a new installation starts with.
pub const SEED: u64 = 1;
/// How many products it has.
pub const PRODUCTS: usize = 300;
/// How many customers it has.
pub const CUSTOMERS: usize = 25;

/// How many commands are under way at once while the shop is loaded.
const CONCURRENCY: usize = 64;

/// A product is called "series, size, thing"; its price grows with the size.
struct Category {
    name: &'static str,
    brands: &'static [&'static str],
    series: &'static [&'static str],
    things: &'static [Thing],
}

struct Thing {
    name: &'static str,
    /// Dollars, for the smallest size.
    price: i64,
    sizes: &'static [&'static str],
}

const fn thing(name: &'static str, price: i64, sizes: &'static [&'static str]) -> Thing {
    Thing { name, price, sizes }
}

const CATEGORIES: [Category; 10] = [
    Category {
        name: "Outdoor",
        brands: &["Fellhaven", "Cairnwright", "Northspur", "Trailmoor"],
        series: &["Ridgeline", "Switchback", "Timberline", "Highpass", "Windrow", "Scree"],
        things: &[
            thing("Backpack", 79, &["28 L", "40 L", "55 L", "70 L"]),
            thing("Tent", 189, &["1-Person", "2-Person", "3-Person", "4-Person"]),
            thing("Sleeping Bag", 99, &["Summer", "3-Season", "Winter"]),
            thing("Trekking Poles", 49, &["Aluminium", "Carbon"]),
            thing("Headlamp", 29, &["250 lm", "400 lm", "600 lm"]),
            thing("Camp Stove", 44, &["1-Burner", "2-Burner"]),
        ],
    },
    Category {
        name: "Kitchen",
        brands: &["Copperhearth", "Larder & Loom", "Brindle Kitchen", "Potwell"],
        series: &["Hearth", "Everyday", "Maison", "Cast & Carry", "Simmer", "Foundry"],
        things: &[
            thing("Frying Pan", 34, &["20 cm", "24 cm", "28 cm", "32 cm"]),
            thing("Saucepan", 39, &["1.5 L", "2 L", "3 L"]),
            thing("Dutch Oven", 89, &["3 L", "5 L", "7 L"]),
            thing("Chef's Knife", 45, &["16 cm", "20 cm", "24 cm"]),
            thing("Mixing Bowl", 14, &["1 L", "2.5 L", "4 L"]),
            thing("Kettle", 42, &["1 L", "1.7 L"]),
        ],
    },
    Category {
        name: "Coffee & Tea",
        brands: &["Second Bell Roasters", "Quayside Coffee", "Leaf & Ladle", "Marrowbone Lane"],
        series: &["Daybreak", "Harbour", "Nightshift", "Orchard", "Monsoon", "Long Meadow"],
        things: &[
            thing("Espresso Beans", 11, &["250 g", "500 g", "1 kg"]),
            thing("Filter Coffee", 10, &["250 g", "500 g", "1 kg"]),
            thing("Decaf Beans", 12, &["250 g", "500 g"]),
            thing("Breakfast Tea", 6, &["50 Bags", "100 Bags", "240 Bags"]),
            thing("Green Tea", 8, &["100 g", "250 g"]),
            thing("Pour-Over Dripper", 19, &["1-Cup", "2-Cup", "4-Cup"]),
        ],
    },
    Category {
        name: "Home Office",
        brands: &["Deskwright", "Plumb & Level", "Oakline Works", "Inkwell Supply"],
        series: &["Focus", "Meridian", "Foyer", "Studio", "Ledger", "Upright"],
        things: &[
            thing("Standing Desk", 329, &["120 cm", "140 cm", "160 cm", "180 cm"]),
            thing("Office Chair", 179, &["Low-Back", "Mid-Back", "High-Back"]),
            thing("Desk Lamp", 39, &["6 W", "9 W", "12 W"]),
            thing("Monitor Arm", 69, &["Single", "Dual"]),
            thing("Notebook", 9, &["A6", "A5", "A4"]),
            thing("Desk Mat", 19, &["60 cm", "80 cm", "100 cm"]),
        ],
    },
    Category {
        name: "Audio",
        brands: &["Halftone", "Larkwave", "Bassett & Reed", "Undertow Audio"],
        series: &["Cadence", "Overture", "Murmur", "Octave", "Reverie", "Backline"],
        things: &[
            thing("Headphones", 79, &["On-Ear", "Over-Ear", "Noise-Cancelling"]),
            thing("Earbuds", 49, &["Wired", "Wireless"]),
            thing("Bluetooth Speaker", 39, &["10 W", "20 W", "40 W", "60 W"]),
            thing("Bookshelf Speakers", 149, &["4-Inch", "5-Inch", "6.5-Inch"]),
            thing("Turntable", 199, &["Belt-Drive", "Direct-Drive"]),
            thing("USB Microphone", 69, &["Cardioid", "Multi-Pattern"]),
        ],
    },
    Category {
        name: "Cycling",
        brands: &["Spokefield", "Velmora", "Chainwell", "Gravelhound"],
        series: &["Tarmac Line", "Backlane", "Peloton", "Cobble", "Descent", "Commuter"],
        things: &[
            thing("Helmet", 49, &["S", "M", "L"]),
            thing("Tyre", 24, &["700×25", "700×32", "700×40"]),
            thing("Pannier", 45, &["12 L", "20 L", "25 L"]),
            thing("Front Light", 25, &["200 lm", "500 lm", "900 lm"]),
            thing("Floor Pump", 32, &["8 bar", "11 bar"]),
            thing("Bike Lock", 29, &["90 cm", "110 cm", "150 cm"]),
        ],
    },
    Category {
        name: "Garden",
        brands: &["Mossgate", "Thornbury Tools", "Sprigwell", "Furrow & Field"],
        series: &["Allotment", "Heritage", "Greenfinger", "Border", "Evergreen", "Kitchen Garden"],
        things: &[
            thing("Secateurs", 18, &["18 cm", "21 cm"]),
            thing("Garden Hose", 22, &["15 m", "25 m", "50 m"]),
            thing("Raised Bed", 59, &["120 cm", "180 cm", "240 cm"]),
            thing("Watering Can", 16, &["5 L", "9 L", "12 L"]),
            thing("Digging Spade", 29, &["Compact", "Full-Length"]),
            thing("Potting Compost", 8, &["20 L", "40 L", "60 L"]),
        ],
    },
    Category {
        name: "Toys & Games",
        brands: &["Gobblewick", "Tin Drum Toys", "Marble & Mill", "Rainy Sunday Games"],
        series: &[
            "Little Harbour",
            "Castle Keep",
            "Star Courier",
            "Dragonfly",
            "Pocket",
            "Big Top",
        ],
        things: &[
            thing("Jigsaw Puzzle", 12, &["100-Piece", "500-Piece", "1000-Piece"]),
            thing("Building Set", 24, &["120-Piece", "300-Piece", "650-Piece"]),
            thing("Board Game", 27, &["2-Player", "4-Player", "6-Player"]),
            thing("Card Game", 9, &["Classic", "Deluxe"]),
            thing("Wooden Train Set", 34, &["20-Piece", "40-Piece", "80-Piece"]),
            thing("Plush Bear", 15, &["20 cm", "35 cm", "50 cm"]),
        ],
    },
    Category {
        name: "Home Textiles",
        brands: &["Linden & Loom", "Woolgather", "Harrowgate Mills", "Softly Spun"],
        series: &["Coastal", "Fennel", "Heather", "Slate", "Marigold", "Nordlight"],
        things: &[
            thing("Bath Towel", 14, &["50 × 100 cm", "70 × 140 cm", "100 × 150 cm"]),
            thing("Duvet Cover", 49, &["Single", "Double", "King"]),
            thing("Wool Blanket", 69, &["130 × 180 cm", "150 × 200 cm"]),
            thing("Cushion", 19, &["40 cm", "50 cm", "60 cm"]),
            thing("Curtain Pair", 54, &["140 cm", "175 cm", "245 cm"]),
            thing("Tea Towel Set", 11, &["2-Pack", "4-Pack"]),
        ],
    },
    Category {
        name: "Tools",
        brands: &["Ironbridge Tool Co.", "Hammerford", "Truebore", "Benchmark & Sons"],
        series: &["Workshop", "Site Pro", "Joiner", "Anvil", "Torque", "Fettle"],
        things: &[
            thing("Cordless Drill", 79, &["12 V", "18 V", "18 V Brushless"]),
            thing("Screwdriver Set", 17, &["6-Piece", "12-Piece", "24-Piece"]),
            thing("Claw Hammer", 16, &["450 g", "570 g"]),
            thing("Spirit Level", 15, &["40 cm", "60 cm", "120 cm"]),
            thing("Socket Set", 39, &["25-Piece", "46-Piece", "94-Piece"]),
            thing("Tape Measure", 9, &["3 m", "5 m", "8 m"]),
        ],
    },
];

const FIRST_NAMES: [&str; 20] = [
    "Ansa", "Bertil", "Calla", "Dario", "Edda", "Faris", "Greta", "Hanno", "Imke", "Joris", "Kaia",
    "Ludo", "Mirela", "Nils", "Oona", "Pascal", "Runa", "Silvan", "Tamsin", "Yara",
];
const LAST_NAMES: [&str; 20] = [
    "Ambervale",
    "Brackwater",
    "Coldhollow",
    "Dunmarrow",
    "Elmsworthy",
    "Fairlocke",
    "Greymantle",
    "Harkenfell",
    "Ironmere",
    "Junipersen",
    "Kestrelby",
    "Larkenshaw",
    "Millravine",
    "Nettlefold",
    "Oakhampsen",
    "Pennywhist",
    "Quillfeather",
    "Rookwether",
    "Silverbeck",
    "Thistledown",
];

/// The first `count` products of a seed's shop, the categories in turn.
pub fn products(seed: u64, count: usize) -> Vec<DefineProduct> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut taken = HashSet::new();
    (0..count)
        .filter_map(|index| product(&CATEGORIES[index % CATEGORIES.len()], &mut rng, &mut taken))
        .collect()
}

fn product(
    category: &Category,
    rng: &mut ChaCha8Rng,
    taken: &mut HashSet<ProductId>,
) -> Option<DefineProduct> {
    let thing = category.things.choose(rng)?;
    let series = rng.random_range(0..category.series.len());
    // A series belongs to one brand, and a brand stands for a level of prices.
    let brand = series % category.brands.len();
    let size = rng.random_range(0..thing.sizes.len());
    let name = format!("{} {} {}", category.series[series], thing.sizes[size], thing.name);
    let (name, product_id) = unique(&name, taken)?;
    let step = i64::try_from(size * 35 + brand * 8).unwrap_or(0);
    let dollars = thing.price * (100 + step + rng.random_range(-6..=6)) / 100;
    let cents = if dollars < 20 { *[49, 95, 99].choose(rng)? } else { *[0, 90, 95].choose(rng)? };
    // Dear things are kept in small numbers; a few products are about to run out.
    let most = if dollars < 30 { 400 } else { 120 };
    let stock = if rng.random_ratio(1, 20) {
        rng.random_range(0..5)
    } else {
        rng.random_range(most / 8..=most)
    };
    Some(DefineProduct {
        product_id,
        name,
        brand: category.brands[brand].to_owned(),
        category: category.name.to_owned(),
        price: Money::new(dollars * 100 + cents, Currency::USD),
        initial_stock: Some(stock),
    })
}

/// The first `count` customers of a seed's shop.
pub fn customers(seed: u64, count: usize) -> Vec<RegisterCustomer> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut taken = HashSet::new();
    let mut customer = |_| {
        let name = format!("{} {}", FIRST_NAMES.choose(&mut rng)?, LAST_NAMES.choose(&mut rng)?);
        let (name, customer_id) = unique::<CustomerId>(&name, &mut taken)?;
        let limit = rng.random_range(2..=40) * 50_000;
        let credit_limit = Some(Money::new(limit, Currency::USD));
        Some(RegisterCustomer { customer_id: Some(customer_id), name, credit_limit })
    };
    (0..count).filter_map(&mut customer).collect()
}

/// The name and its slug; a number is added where the slug is taken.
fn unique<Id>(name: &str, taken: &mut HashSet<Id>) -> Option<(String, Id)>
where
    Id: FromStr + Clone + Eq + Hash,
{
    let mut full = name.to_owned();
    for number in 2_u32.. {
        let id: Id = slug(&full).parse().ok()?;
        if taken.insert(id.clone()) {
            return Some((full, id));
        }
        full = format!("{name} No. {number}");
    }
    None
}

fn slug(name: &str) -> String {
    let text = name.replace('\'', "").replace('×', "x").replace('.', "-").to_lowercase();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// Publishes what the log does not know yet of a seed's shop; tells how many commands that were.
/// Each has an idempotency key of its own, so that doing it twice, or being cut off, does no harm.
pub async fn load(
    jetstream: &jetstream::Context,
    topology: &Topology,
    seed: u64,
) -> anyhow::Result<usize> {
    let log = jetstream
        .get_stream_no_info(topology.events_stream())
        .await
        .context("the stream of events cannot be read")?;
    let products = products(seed, PRODUCTS).into_iter().map(|product| {
        let history = topology.history(Subject::Product, product.product_id.as_str());
        (history, Command::DefineProduct(product))
    });
    let customers = customers(seed, CUSTOMERS).into_iter().filter_map(|customer| {
        let history = topology.history(Subject::Customer, customer.customer_id.as_ref()?.as_str());
        Some((history, Command::RegisterCustomer(customer)))
    });
    let log = &log;
    futures_util::stream::iter(products.chain(customers))
        .map(|(history, command)| async move {
            if is_known(log, &history).await? {
                return Ok(0);
            }
            publish(jetstream, topology, &command).await.map(|()| 1)
        })
        .buffer_unordered(CONCURRENCY)
        .try_fold(0, |sum, one| async move { anyhow::Ok(sum + one) })
        .await
        .context("the sample catalogue cannot be loaded")
}

async fn is_known(log: &Stream<()>, history: &str) -> anyhow::Result<bool> {
    match log.get_last_raw_message_by_subject(history).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn publish(
    jetstream: &jetstream::Context,
    topology: &Topology,
    command: &Command,
) -> anyhow::Result<()> {
    let body = serde_json::to_vec(command)?;
    let mut headers = async_nats::HeaderMap::new();
    let key = format!("sample-{}", ids::fingerprint(command.kind(), &body));
    headers.insert(KEY_HEADER, key);
    let subject = topology.command(command.kind());
    jetstream.publish_with_headers(subject, headers, body.into()).await?.await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_shop_every_time() {
        assert_eq!(products(7, 300), products(7, 300));
        assert_eq!(customers(7, 25), customers(7, 25));
        assert_ne!(products(7, 300), products(8, 300));
    }

    #[test]
    fn ids_are_unique_however_many_there_are() {
        let ids: HashSet<_> = products(1, 3_000).into_iter().map(|p| p.product_id).collect();
        assert_eq!(ids.len(), 3_000);
        let ids: HashSet<_> = customers(1, 1_000).into_iter().map(|c| c.customer_id).collect();
        assert_eq!(ids.len(), 1_000);
    }

    #[test]
    fn every_category_is_in_the_shop() {
        let seen: HashSet<_> = products(1, PRODUCTS).into_iter().map(|p| p.category).collect();
        assert_eq!(seen.len(), CATEGORIES.len());
    }

    #[test]
    fn every_command_is_one_that_the_system_reads() {
        let products = products(1, PRODUCTS).into_iter().map(Command::DefineProduct);
        let customers = customers(1, CUSTOMERS).into_iter().map(Command::RegisterCustomer);
        for command in products.chain(customers) {
            let serde_json::Value::Object(body) = serde_json::to_value(&command).unwrap() else {
                panic!("{command:?} is no object");
            };
            assert_eq!(Command::read(command.kind(), body), Ok(command));
        }
    }

    #[test]
    fn slugs_hold_only_what_ids_may_hold() {
        assert_eq!(slug("Backlane 700×25 Tyre"), "backlane-700x25-tyre");
        assert_eq!(slug("Everyday 1.5 L Chef's Pan"), "everyday-1-5-l-chefs-pan");
    }
}
