//! The catalogue search: what is found, counted and paged is what a count by hand gives, it is live,
//! and it is made anew from the log by every edge that starts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::harness::{System, card_order, eventually, usd};

mod ready;

const CATEGORIES: [&str; 5] = ["Beverages", "Meat & Poultry", "Office", "Seafood", "Tools"];
const BRANDS: [&str; 6] = ["Acme", "Aux joyeux", "Pavlova", "Tokyo Traders", "Lyngby", "Mayumi"];
const THINGS: [&str; 8] =
    ["Screwdriver", "Pencil", "Notebook", "Kettle", "Crème Brûlée", "Chai", "Lantern", "Syrup"];

/// A product of the seeded catalogue.
#[derive(Debug, Clone)]
struct Made {
    id: String,
    body: Value,
}

fn make(seed: u64, count: usize) -> Vec<Made> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut pick = |from: &[&str]| (*from.choose(&mut random).expect("some")).to_owned();
    let texts: Vec<[String; 4]> = (0..count)
        .map(|_| {
            [pick(&THINGS), pick(&["large", "small", "red"]), pick(&BRANDS), pick(&CATEGORIES)]
        })
        .collect();
    let product = |(number, [thing, kind, brand, category]): (usize, [String; 4])| Made {
        id: format!("P-{number:04}"),
        body: json!({
            "name": format!("{kind} {thing} {number}"), "brand": brand, "category": category,
            "price": {
                "amount": random.random_range(0..30_000),
                "currency": if random.random_bool(0.3) { "EUR" } else { "USD" },
            },
            "initialStock": random.random_range(0..3),
        }),
    };
    texts.into_iter().enumerate().map(product).collect()
}

/// Defines products over NATS, and waits until the search knows them all.
async fn define_all(system: &System, products: &[Made]) {
    let publish = async |product: &Made| {
        let mut body = product.body.clone();
        body["productId"] = json!(product.id);
        system.publish("product.define", &body).await;
    };
    for chunk in products.chunks(64) {
        futures_util::future::join_all(chunk.iter().map(publish)).await;
    }
    // Texts are indexed a moment after the rest is known.
    for thing in THINGS {
        let named = |made: &&Made| text(made, "name").contains(thing);
        let word = thing.split(' ').next().expect("a word");
        let query = format!("q={word}").replace('è', "%C3%A8");
        total_is(system, &query, products.iter().filter(named).count()).await;
    }
}

async fn search(system: &System, query: &str) -> Value {
    let answer = system.get(&format!("/v1/products?{query}")).await;
    assert_eq!(answer.status, 200, "{query} {answer:?}");
    answer.body
}

async fn total_is(system: &System, query: &str, total: usize) {
    eventually(&format!("{total} are found by {query}"), async || {
        let answer = system.get(&format!("/v1/products?{query}")).await;
        (answer.body["total"] == total).then_some(())
    })
    .await;
}

fn ids(found: &Value) -> Vec<String> {
    let items = found["items"].as_array().expect("items");
    items.iter().map(|item| item["productId"].as_str().expect("an id").to_owned()).collect()
}

/// The ids of all pages.
async fn all_pages(system: &System, query: &str, limit: usize) -> Vec<String> {
    let mut found = search(system, &format!("{query}&limit={limit}")).await;
    let mut all = Vec::new();
    loop {
        assert!(ids(&found).len() <= limit);
        all.extend(ids(&found));
        let Some(cursor) = found["nextCursor"].as_str() else { return all };
        found = search(system, &format!("{query}&limit={limit}&cursor={cursor}")).await;
    }
}

/// A facet's counts by value.
fn counts(facet: &Value) -> BTreeMap<String, u64> {
    let values = facet["values"].as_array().expect("values");
    let count =
        |value: &Value| Some((value["value"].as_str()?.to_owned(), value["count"].as_u64()?));
    values.iter().map(|value| count(value).expect("a value and its count")).collect()
}

/// The counts of the price bands by currency and lowest price, each checked to be what a search for
/// just this band finds.
async fn bands(system: &System, facets: &Value, query: &str) -> BTreeMap<(String, i64), u64> {
    let mut bands = BTreeMap::new();
    for prices in facets["prices"].as_array().expect("prices") {
        let currency = prices["currency"].as_str().expect("a currency");
        let mut sum = 0;
        for band in prices["bands"].as_array().expect("bands") {
            let (min, max) = (&band["min"], &band["max"]);
            let within = format!("{query}&currency={currency}&minPrice={min}&maxPrice={max}");
            assert_eq!(search(system, &within).await["total"], band["count"], "{within}");
            let count = band["count"].as_u64().expect("a count");
            bands.insert((currency.to_owned(), min.as_i64().expect("a price")), count);
            sum += count;
        }
        assert_eq!(prices["count"], sum);
    }
    bands
}

/// Whether a product is one of those that are counted by hand.
type Test = Box<dyn Fn(&Made) -> bool>;

fn text<'a>(made: &'a Made, field: &str) -> &'a str {
    made.body[field].as_str().expect("a text")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_counted_and_paged_is_what_a_count_by_hand_gives() {
    let system = System::start().await;
    let made = make(7, 300);
    define_all(&system, &made).await;
    let price = |made: &Made| made.body["price"]["amount"].as_i64().expect("a price");
    let dollars = |made: &Made| made.body["price"]["currency"] == "USD";

    // Any combination of filters; a facet's own filter does not narrow its own counts.
    let any = || -> Test { Box::new(|_| true) };
    let word: fn(&'static str) -> Test =
        |word| Box::new(move |made| text(made, "name").split(' ').any(|part| part == word));
    let is: fn(&'static str, &'static [&'static str]) -> Test =
        |field, values| Box::new(move |made| values.contains(&text(made, field)));
    let cheap: fn() -> Test = || {
        Box::new(move |m| {
            m.body["price"]["currency"] == "USD" && m.body["price"]["amount"].as_i64() < Some(9_000)
        })
    };
    let in_stock: fn() -> Test = || Box::new(|made| made.body["initialStock"].as_i64() > Some(0));
    for (query, base, category, brand, prices) in [
        ("q=".to_owned(), any(), any(), any(), any()),
        ("q=pencil".to_owned(), word("Pencil"), any(), any(), any()),
        (
            "q=pencil&category=Office&category=Tools".to_owned(),
            word("Pencil"),
            is("category", &["Office", "Tools"]),
            any(),
            any(),
        ),
        (
            "category=Meat+%26+Poultry&brand=Acme".to_owned(),
            any(),
            is("category", &["Meat & Poultry"]),
            is("brand", &["Acme"]),
            any(),
        ),
        (
            "q=red&brand=Acme&brand=Lyngby&currency=USD&maxPrice=8999&inStock=true".to_owned(),
            Box::new(move |made| word("red")(made) && in_stock()(made)),
            any(),
            is("brand", &["Acme", "Lyngby"]),
            cheap(),
        ),
        ("category=Nowhere".to_owned(), any(), is("category", &["Nowhere"]), any(), any()),
    ] {
        let count = |tests: [&Test; 3], by: &dyn Fn(&Made) -> String| {
            let mut counts: BTreeMap<String, u64> = BTreeMap::new();
            for made in made.iter().filter(|made| base(made) && tests.iter().all(|test| test(made)))
            {
                *counts.entry(by(made)).or_default() += 1;
            }
            counts
        };
        let found = search(&system, &format!("{query}&limit=100")).await;
        let hand = count([&category, &brand, &prices], &|made| made.id.clone());
        assert_eq!(found["total"], hand.len(), "{query}");
        let facets = &found["facets"];
        let by_category =
            count([&any(), &brand, &prices], &|made| text(made, "category").to_owned());
        assert_eq!(counts(&facets["categories"]), by_category, "{query}");
        let by_brand = count([&category, &any(), &prices], &|made| text(made, "brand").to_owned());
        assert_eq!(counts(&facets["brands"]), by_brand, "{query}");
        let by_currency = count([&category, &brand, &any()], &|made| {
            made.body["price"]["currency"].as_str().expect("a currency").to_owned()
        });
        let told = facets["prices"].as_array().expect("prices").iter();
        let told: BTreeMap<String, u64> = told
            .map(|p| {
                (
                    p["currency"].as_str().expect("a currency").to_owned(),
                    p["count"].as_u64().expect("a count"),
                )
            })
            .collect();
        assert_eq!(told, by_currency, "{query}");
        // Every page once, in the order that was asked for.
        for (sort, limit) in [("relevance", 7), ("price", 13), ("-price", 1), ("newest", 50)] {
            let all = all_pages(&system, &format!("{query}&sort={sort}"), limit).await;
            assert_eq!(all.len(), hand.len(), "{query} {sort}");
            assert_eq!(
                all.iter().collect::<BTreeSet<_>>(),
                hand.keys().collect(),
                "{query} {sort}"
            );
        }
    }
    let all = search(&system, "q=").await;
    bands(&system, &all["facets"], "q=").await;

    // Prices are in order, currency by currency.
    let by_id: BTreeMap<&str, &Made> = made.iter().map(|made| (made.id.as_str(), made)).collect();
    for (sort, sign) in [("price", 1), ("-price", -1)] {
        let listed = all_pages(&system, &format!("sort={sort}"), 40).await;
        let keys: Vec<(bool, i64)> = listed
            .iter()
            .map(|id| by_id[id.as_str()])
            .map(|m| (dollars(m), sign * price(m)))
            .collect();
        assert!(keys.is_sorted(), "{keys:?}");
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_is_found_live_in_spite_of_typing_errors_and_as_one_types() {
    let system = System::start().await;
    let start = Instant::now();
    let body = json!({
        "productId": "creme-1", "name": "Crème Brûlée", "brand": "Aux joyeux",
        "category": "Confections", "price": usd(1_550), "initialStock": 3,
    });
    system.publish("product.define", &body).await;
    total_is(&system, "q=creme+brulee", 1).await;
    assert!(start.elapsed() < Duration::from_secs(10), "it took {:?}", start.elapsed());
    for query in [
        "brulee",
        "Br%C3%BBl%C3%A9e",
        "bruele",
        "creme+bru",
        "c",
        "joyeux",
        "confektion",
        "creme-1",
    ] {
        total_is(&system, &format!("q={query}"), 1).await;
    }
    for query in ["bru+creme", "cake", "creme+cake", "brulee&active=false", "brulee&inStock=false"]
    {
        assert_eq!(search(&system, &format!("q={query}")).await["total"], 0, "{query}");
    }
    let found = search(&system, "q=brulee").await;
    assert_eq!(found["items"][0], system.get("/v1/products/creme-1").await.body);
    assert_eq!(
        bands(&system, &found["facets"], "q=brulee").await,
        [(("USD".to_owned(), 1_000), 1)].into()
    );

    // Stock, as orders take it.
    system.register("ann", None).await;
    let placed =
        system.post_and_wait("/v1/orders", &card_order("ann", "creme-1", 3, "tok_ok")).await;
    assert_eq!(placed.status, 201, "{placed:?}");
    total_is(&system, "q=brulee&inStock=false", 1).await;
    let restock = json!({ "quantity": 5 });
    system.post_and_wait("/v1/products/creme-1/restock", &restock).await;
    total_is(&system, "q=brulee&inStock=true", 1).await;
    let found = search(&system, "q=brulee").await;
    assert_eq!(found["items"][0]["stock"], json!({ "available": 5, "reserved": 3, "sold": 0 }));

    // Another price is in another band, another name is found by, another currency is its own.
    let changed = json!({
        "name": "Crème caramel", "brand": "Aux joyeux", "category": "Confections",
        "price": { "amount": 250, "currency": "USD" },
    });
    assert_eq!(system.put_and_wait("/v1/products/creme-1", &changed).await.status, 200);
    total_is(&system, "q=caramel", 1).await;
    total_is(&system, "q=brulee", 0).await;
    let found = search(&system, "q=caramel").await;
    assert_eq!(
        bands(&system, &found["facets"], "q=caramel").await,
        [(("USD".to_owned(), 200), 1)].into()
    );

    system.post_and_wait("/v1/products/creme-1/retire", &json!({})).await;
    total_is(&system, "q=caramel&active=true", 0).await;
    assert_eq!(search(&system, "q=caramel&active=false").await["total"], 1);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_stay_whole_while_other_products_come_and_go() {
    let system = System::start().await;
    let made = make(11, 60);
    define_all(&system, &made).await;
    let first = search(&system, "q=&sort=price&limit=20").await;
    let mut seen = ids(&first);
    // One comes before the place, one after it, and one that was seen changes its price.
    let first_of_all = json!({
        "name": "New", "brand": "Acme", "category": "Tools",
        "price": { "amount": 0, "currency": "EUR" },
    });
    assert_eq!(system.put_and_wait("/v1/products/A-new", &first_of_all).await.status, 200);
    system.define("Z-new", 1_000_000, 1).await;
    total_is(&system, "q=", 62).await;
    let mut cursor = first["nextCursor"].as_str().expect("a next page").to_owned();
    loop {
        let page = search(&system, &format!("q=&sort=price&limit=20&cursor={cursor}")).await;
        seen.extend(ids(&page));
        let Some(next) = page["nextCursor"].as_str() else { break };
        next.clone_into(&mut cursor);
    }
    let mut expected: BTreeSet<String> = made.into_iter().map(|made| made.id).collect();
    expected.insert("Z-new".to_owned());
    assert_eq!(seen.len(), expected.len());
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected);
    system.stop().await;
}
