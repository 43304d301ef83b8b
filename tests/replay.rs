//! A shop's recorded orders, placed again with `millrace replay`.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::System;
use crate::process::{Ended, folder, run, settings};

const PRODUCTS: &str = "\
productId,name,brand,category,priceMinor,currency,stock,discontinued
tea,\"Tea, black\",Leaf & Sons,Beverages,1800,USD,100,0
syrup,Aniseed Syrup,Leaf & Sons,Condiments,1000,USD,60,0
jam,Brombær Jam,Bær,Condiments,2500,USD,3,0
cheese,Goat Cheese,Älpli,Dairy,700,USD,20,1
";
const CUSTOMERS: &str = "\
customerId,name,contact,city,country
ANNA,Anna's Shop,Anna,Bern,Switzerland
BERT,Bert & Co.,Bert,Gent,Belgium
CARL,\"Carl, Inc.\",Carl,México D.F.,Mexico
";
const ORDERS: &str = "\
orderId,customerId,orderDate,shippedDate,shipCity,shipCountry
1001,ANNA,1996-07-04,1996-07-16,Bern,Switzerland
1002,BERT,1996-07-05,1996-07-10,Gent,Belgium
1003,CARL,1996-07-08,1996-07-12,México D.F.,Mexico
1004,ANNA,1996-07-08,1996-07-15,Bern,Switzerland
1005,BERT,1996-07-09,1996-07-11,Gent,Belgium
1006,CARL,1996-07-10,1996-07-16,México D.F.,Mexico
1007,ANNA,1996-07-11,1996-07-23,Bern,Switzerland
1008,BERT,1996-07-12,1996-07-15,Gent,Belgium
1009,CARL,1996-07-15,1996-07-17,México D.F.,Mexico
1010,ANNA,1996-07-16,1996-07-22,Bern,Switzerland
1011,BERT,1996-07-17,1996-07-23,Gent,Belgium
1012,CARL,1996-07-18,1996-07-25,México D.F.,Mexico
";
const LINES: &str = "\
orderId,productId,quantity,unitPriceThenMinor,discount
1001,tea,5,1440,0
1001,syrup,3,800,0.15
1002,tea,1,1440,0
1003,jam,2,2000,0
1003,tea,4,1440,0
1004,jam,2,2000,0
1004,syrup,1,800,0
1005,cheese,1,560,0
1006,tea,2,1440,0
1006,syrup,2,800,0
1006,cheese,3,560,0
1007,syrup,10,800,0
1007,tea,10,1440,0
1008,jam,1,2000,0
1009,tea,7,1440,0
1009,syrup,7,800,0
1009,jam,1,2000,0
1010,syrup,20,800,0
1010,tea,20,1440,0
1011,tea,3,1440,0
1011,syrup,4,800,0
1011,cheese,1,560,0
1012,tea,6,1440,0
1012,syrup,5,800,0
1012,jam,4,2000,0
";

/// The shop's files in a folder of their own.
struct Shop(PathBuf);

impl Shop {
    fn new() -> Self {
        let folder = folder("shop");
        let files = [PRODUCTS, CUSTOMERS, ORDERS, LINES];
        for (name, text) in ["products", "customers", "orders", "lines"].iter().zip(files) {
            fs::write(folder.join(format!("{name}.csv")), text).expect("a file");
        }
        Self(folder)
    }

    /// Changes the one place in a file where `from` stands.
    fn change(self, file: &str, from: &str, to: &str) -> Self {
        let path = self.0.join(file);
        let text = fs::read_to_string(&path).expect("a file");
        assert_eq!(text.matches(from).count(), 1, "{from:?} in {file}");
        fs::write(path, text.replace(from, to)).expect("a file");
        self
    }

    async fn replay(&self, system: &System, more: &[&str]) -> Ended {
        let mut words = vec!["replay".to_owned()];
        for name in ["products", "customers", "orders", "lines"] {
            let path = self.0.join(format!("{name}.csv"));
            words.extend([format!("--{name}"), path.to_str().expect("UTF-8").to_owned()]);
        }
        if !more.contains(&"--via=nats") {
            words.extend(["--target".to_owned(), system.http.clone()]);
        }
        words.extend(more.iter().map(|word| (*word).to_owned()));
        run(&words, &settings(&system.config)).await
    }
}

/// Checks what a replay tells: the set-up, the rows by outcome, the count of orders.
fn told(ended: &Ended, set_up: &str, rows: &[&str], orders: &str) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines: Vec<String> = ended
        .output
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(lines[0], set_up, "{}", ended.output);
    let head = lines.iter().position(|line| line == "status reason orders lines units total");
    let table = &lines[head.expect("a table") + 1..];
    let end = table.iter().position(String::is_empty).expect("the end of the table");
    assert_eq!(table[..end], *rows, "{}", ended.output);
    assert!(lines.last().is_some_and(|last| last.starts_with(orders)), "{}", ended.output);
}

/// What stands for a second order, if one were made: the log's last word on orders, and the rows.
async fn orders_made(system: &System) -> (u64, i64, i64) {
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let stream = jetstream.get_stream(system.topology.events_stream()).await.expect("the log");
    let subject = format!("{}.evt.order.>", system.topology.namespace());
    let last = stream.get_last_raw_message_by_subject(&subject).await.expect("an event");
    let (orders, events) = sqlx::query_as(
        "select (select count(*) from journal.orders),
                (select count(*) from journal.events where subject = 'order')",
    )
    .fetch_one(&system.pool)
    .await
    .expect("the journal");
    (last.sequence, orders, events)
}

/// Paid orders, lines, units and cents: in the journal by SQL, and as the views show them.
async fn paid(system: &System) -> [(i64, i64, i64, i64); 2] {
    let journal: (i64, i64, i64, i64) = sqlx::query_as(
        "select count(*), sum(lines)::bigint, sum(units)::bigint, sum(total)::bigint
         from journal.orders join (
             select order_id, count(*) as lines, sum(quantity) as units
             from journal.order_lines group by order_id
         ) as bought using (order_id)
         where status = 'paid' and currency = 'USD'",
    )
    .fetch_one(&system.pool)
    .await
    .expect("the journal");
    let mut views = (0, 0, 0, 0);
    for customer in ["ANNA", "BERT", "CARL"] {
        let path = format!("/v1/customers/{customer}/orders?status=paid&limit=100");
        let page = system.get(&path).await.body;
        assert!(page["nextCursor"].is_null() && page["items"].is_array(), "{page}");
        for order in page["items"].as_array().expect("items") {
            let lines = order["lines"].as_array().expect("lines");
            views.0 += 1;
            views.1 += i64::try_from(lines.len()).expect("few");
            views.2 += lines.iter().filter_map(|line| line["quantity"].as_i64()).sum::<i64>();
            views.3 += order["total"]["amount"].as_i64().expect("a total");
        }
    }
    [journal, views]
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_shops_own_stock_each_order_has_the_right_end_and_is_placed_once() {
    let system = System::start().await;
    let shop = Shop::new();
    let rows = [
        "paid - 6 10 76 1125.00 USD",
        "rejected out_of_stock 3 8 33 539.00 USD",
        "rejected product_inactive 3 7 16 185.00 USD",
    ];
    let first = shop.replay(&system, &[]).await;
    told(&first, "4 products (4 new), 3 customers (3 new)", &rows, "12 orders: 12 new, 0 already");
    system.settle().await;
    assert_eq!(paid(&system).await, [(6, 10, 76, 112_500); 2]);
    system.stock_is("tea", [60, 40, 0]).await;
    system.stock_is("jam", [0, 3, 0]).await;
    system.stock_is("cheese", [20, 0, 0]).await;
    let made = orders_made(&system).await;
    assert_eq!(made.1, 12);

    // Again, the same way and the other way: the keys are the same.
    for way in [&[][..], &["--concurrency=6"], &["--via=nats"]] {
        let again = shop.replay(&system, way).await;
        let set_up = "4 products (0 new), 3 customers (0 new)";
        told(&again, set_up, &rows, "12 orders: 0 new, 12 already");
        system.settle().await;
        assert_eq!(orders_made(&system).await, made, "{way:?}");
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_enough_stock_and_discontinued_products_all_orders_are_paid_over_nats() {
    let system = System::start().await;
    let shop = Shop::new();
    let way = ["--via=nats", "--stock=1000", "--include-discontinued", "--concurrency=4"];
    let rows = ["paid - 12 25 125 1849.00 USD"];
    let first = shop.replay(&system, &way).await;
    told(&first, "4 products (4 new), 3 customers (3 new)", &rows, "12 orders: 12 new, 0 already");
    system.settle().await;
    assert_eq!(paid(&system).await, [(12, 25, 125, 184_900); 2]);
    for (product, bought) in [("tea", 58), ("syrup", 52), ("jam", 10), ("cheese", 5)] {
        system.stock_is(product, [1_000 - bought, bought, 0]).await;
    }
    let made = orders_made(&system).await;
    let again = shop.replay(&system, &way).await;
    let set_up = "4 products (0 new), 3 customers (0 new)";
    told(&again, set_up, &rows, "12 orders: 0 new, 12 already");
    system.settle().await;
    assert_eq!(orders_made(&system).await, made);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_on_account_are_paid_up_to_the_credit_limit() {
    let system = System::start().await;
    let way = [
        "--stock=1000",
        "--include-discontinued",
        "--payment=account",
        "--credit-limit=100000",
        "--price=catalogue",
    ];
    // Anna's orders are 120, 60, 280 and 560 dollars; her limit is 1000.
    let rows = ["paid - 11 23 85 1289.00 USD", "rejected insufficient_credit 1 2 40 560.00 USD"];
    let ended = Shop::new().replay(&system, &way).await;
    told(&ended, "4 products (4 new), 3 customers (3 new)", &rows, "12 orders: 12 new");
    system.settle().await;
    let anna = system.get("/v1/customers/ANNA").await.body;
    assert_eq!(anna["creditUsed"]["amount"], 46_000, "{anna}");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_with_a_mistake_are_refused_by_file_line_and_column_and_nothing_is_placed() {
    let system = System::without_workers().await;
    let cases = [
        ("products.csv", "priceMinor", "price", "products.csv: there is no column \"priceMinor\""),
        ("products.csv", "1000,USD", "10.00,USD", "products.csv:3: priceMinor: "),
        ("products.csv", "700,USD", "700,Dollars", "products.csv:5: currency: "),
        ("products.csv", ",3,0", ",-3,0", "products.csv:4: stock: "),
        ("customers.csv", "BERT,", "B RT,", "customers.csv:3: customerId: "),
        ("orders.csv", "1003,CARL", "1003,DORA", "orders.csv:4: customerId: "),
        ("orders.csv", "1002,BERT", "1001,BERT", "orders.csv:3: orderId: "),
        ("lines.csv", "1003,jam,2", "1003,jam,two", "lines.csv:5: quantity: "),
        ("lines.csv", "1008,jam,1", "1008,ham,1", "lines.csv:15: productId: "),
        ("lines.csv", "1002,tea,1,", "1099,tea,1,", "lines.csv"),
        ("lines.csv", "1012,jam,4,2000,0\n", "1012,jam", "lines.csv"),
    ];
    for (file, from, to, named) in cases {
        let ended = Shop::new().change(file, from, to).replay(&system, &[]).await;
        assert_eq!(ended.code, Some(1), "{file} with {to:?}: {ended:?}");
        assert!(ended.errors.contains(named), "{file} with {to:?}: {}", ended.errors);
        assert_eq!(ended.errors.lines().count(), 1, "{}", ended.errors);
        assert_eq!(ended.output, "", "{file} with {to:?}");
    }
    let shop = Shop::new();
    fs::remove_file(shop.0.join("lines.csv")).expect("the file was there");
    let ended = shop.replay(&system, &[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.errors.contains("lines.csv cannot be read"), "{ended:?}");

    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let stream =
        jetstream.get_stream(system.topology.commands_stream()).await.expect("it is there");
    assert_eq!(stream.cached_info().state.last_sequence, 0, "nothing was sent");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_nobody_answers_says_where_it_is_stuck() {
    let system = System::without_workers().await;
    let shop = Shop::new();
    for way in [&["--timeout=1"][..], &["--timeout=1", "--via=nats"]] {
        let ended = shop.replay(&system, way).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        for said in ["no order was placed", "are the workers running?"] {
            assert!(ended.errors.contains(said), "{said:?} is not in: {}", ended.errors);
        }
    }
    let files = ["products", "customers", "orders", "lines"]
        .map(|name| format!("--{name}={}", shop.0.join(name).with_extension("csv").display()));
    let replay = |more: &str| {
        let words = ["replay"].into_iter().chain(files.iter().map(String::as_str));
        words.chain([more]).map(str::to_owned).collect::<Vec<_>>()
    };
    let ended = run(&replay("--target=http://127.0.0.1:1"), &[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.errors.contains("http://127.0.0.1:1"), "{ended:?}");
    let ended = run(&replay("--via=http"), &[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.errors.contains("--via http needs --target"), "{ended:?}");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_with_other_names_are_read_by_option() {
    let system = System::start().await;
    let shop = Shop::new().change("orders.csv", "orderId,customerId", "order_no,buyer").change(
        "lines.csv",
        "orderId,productId",
        "order_no,sku",
    );
    let way = [
        "--column=orderId=order_no",
        "--column=orders.customerId=buyer",
        "--column=lines.productId=sku",
        "--stock=1000",
        "--include-discontinued",
        "--rate=200",
    ];
    let ended = shop.replay(&system, &way).await;
    let rows = ["paid - 12 25 125 1849.00 USD"];
    told(&ended, "4 products (4 new), 3 customers (3 new)", &rows, "12 orders: 12 new");
    // The journal is a moment behind.
    system.settle().await;
    let order: Value = sqlx::query_scalar(
        "select json_agg(json_build_array(product_id, name, brand, quantity, line_total)
                         order by line)
         from journal.order_lines join journal.orders using (order_id)
         where customer_id = 'CARL' and total = 12200",
    )
    .fetch_one(&system.pool)
    .await
    .expect("Carl's first order");
    let bought = serde_json::json!([
        ["jam", "Brombær Jam", "Bær", 2, 5_000],
        ["tea", "Tea, black", "Leaf & Sons", 4, 7_200],
    ]);
    assert_eq!(order, bought);
    system.stop().await;
}
