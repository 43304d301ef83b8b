//! How much one caller may ask for: requests a second, and open streams. Callers are told apart by
//! what they have signed in with, others by their address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use lru::LruCache;

use super::{Caller, Role};

/// Callers whose rate is known at a time. Who has not called for the longest is forgotten.
const KNOWN: NonZeroUsize = NonZeroUsize::MIN.saturating_add(19_999);
/// The seconds' worth of requests that may come at once.
const BURST_SECONDS: u32 = 2;

/// Requests a second of one caller of each kind; none is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    customer: Option<NonZeroU32>,
    service: Option<NonZeroU32>,
    operator: Option<NonZeroU32>,
    anonymous: Option<NonZeroU32>,
}

impl Rates {
    /// What is usual where callers sign in: nobody notices it but who does harm.
    pub fn usual() -> Self {
        Self {
            customer: NonZeroU32::new(50),
            service: NonZeroU32::new(10_000),
            operator: NonZeroU32::new(500),
            anonymous: NonZeroU32::new(100),
        }
    }

    /// With some of them changed.
    #[must_use]
    pub fn with(mut self, changes: &[Rate]) -> Self {
        for Rate { of, requests } in changes {
            *match of {
                Some(Role::Customer) => &mut self.customer,
                Some(Role::Service) => &mut self.service,
                Some(Role::Operator) => &mut self.operator,
                None => &mut self.anonymous,
            } = *requests;
        }
        self
    }

    fn of(&self, caller: &Caller) -> Option<NonZeroU32> {
        match caller.role {
            Role::Customer => self.customer,
            Role::Service => self.service,
            Role::Operator => self.operator,
        }
    }
}

/// One rate, as it is configured: `customer=50`, `anonymous=20`, `service=0` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Of whom; nobody who has signed in, if it is absent.
    of: Option<Role>,
    requests: Option<NonZeroU32>,
}

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "must be customer=N, service=N, operator=N or anonymous=N, in requests a second; \
             0 is no limit";
        let (of, requests) = text.split_once('=').ok_or(WRONG)?;
        let of = match of {
            "anonymous" => None,
            role => Some(role.parse().map_err(|()| WRONG)?),
        };
        let requests: u32 = requests.parse().map_err(|_| WRONG)?;
        Ok(Self { of, requests: NonZeroU32::new(requests) })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Caller(Arc<str>),
    Address(IpAddr),
}

/// Counts what callers ask for.
#[derive(Debug)]
pub struct Limits {
    rates: Rates,
    buckets: Mutex<LruCache<Key, DefaultDirectRateLimiter>>,
    most_streams: Option<usize>,
    streams: Streams,
}

/// Open streams by caller.
type Streams = Arc<Mutex<HashMap<Arc<str>, usize>>>;

impl Limits {
    /// Limits of requests, and of open streams of one customer or operator.
    pub fn new(rates: Rates, most_streams: Option<usize>) -> Self {
        let buckets = Mutex::new(LruCache::new(KNOWN));
        Self { rates, buckets, most_streams, streams: Arc::default() }
    }

    /// Counts a request of who has signed in; how long to wait, if it is one too many.
    pub fn check_caller(&self, caller: &Caller) -> Result<(), Duration> {
        match (self.rates.of(caller), &caller.name) {
            (Some(rate), Some(name)) => self.check(Key::Caller(Arc::clone(name)), rate),
            _ => Ok(()),
        }
    }

    /// The same for an address.
    pub fn check_address(&self, address: impl FnOnce() -> IpAddr) -> Result<(), Duration> {
        let Some(rate) = self.rates.anonymous else { return Ok(()) };
        self.check(Key::Address(network(address())), rate)
    }

    fn check(&self, key: Key, rate: NonZeroU32) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.get_or_insert(key, || {
            let burst = rate.saturating_mul(NonZeroU32::MIN.saturating_add(BURST_SECONDS - 1));
            RateLimiter::direct(Quota::per_second(rate).allow_burst(burst))
        });
        bucket.check().map_err(|until| until.wait_time_from(DefaultClock::default().now()))
    }

    /// Room for one more stream of a caller; nothing, if it has as many as it may. A service has them
    /// for many others: only the limit of all streams counts for it.
    pub fn stream(&self, caller: &Caller) -> Option<OwnStream> {
        let (Some(most), Some(name)) = (self.most_streams, &caller.name) else {
            return Some(OwnStream(None));
        };
        if caller.role == Role::Service {
            return Some(OwnStream(None));
        }
        let mut streams = lock(&self.streams);
        let open = streams.entry(Arc::clone(name)).or_default();
        if *open >= most {
            return None;
        }
        *open += 1;
        drop(streams);
        Some(OwnStream(Some((Arc::clone(&self.streams), Arc::clone(name)))))
    }
}

/// Of an IPv6 address the part that one customer of a provider has (RFC 6177): the rest is as many
/// addresses as one likes.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn lock(streams: &Streams) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A caller's open stream; dropping it ends that.
#[derive(Debug)]
pub struct OwnStream(Option<(Streams, Arc<str>)>);

impl Drop for OwnStream {
    fn drop(&mut self) {
        let Some((streams, name)) = &self.0 else { return };
        let mut streams = lock(streams);
        if let Some(open) = streams.get_mut(name) {
            *open -= 1;
            if *open == 0 {
                streams.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn customer(id: &str) -> Caller {
        Caller::customer(id.parse().unwrap(), SystemTime::now())
    }

    fn limits(rates: &str) -> Limits {
        let rates: Vec<Rate> = rates.split(',').map(|rate| rate.parse().unwrap()).collect();
        Limits::new(Rates::default().with(&rates), Some(2))
    }

    #[test]
    fn a_caller_has_its_own_rate_and_is_told_how_long_to_wait() {
        let limits = limits("customer=1,anonymous=1");
        let (ann, bob) = (customer("ann"), customer("bob"));
        assert_eq!([limits.check_caller(&ann), limits.check_caller(&ann)], [Ok(()); 2]);
        let wait = limits.check_caller(&ann).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1), "{wait:?}");
        assert_eq!(limits.check_caller(&bob), Ok(()));
        let service = Caller::worker(Role::Service, "shop", None);
        assert!((0..1_000).all(|_| limits.check_caller(&service).is_ok()));
        assert!((0..1_000).all(|_| limits.check_caller(&Caller::ANYBODY).is_ok()));
    }

    #[test]
    fn whoever_has_a_network_has_one_rate() {
        let limits = limits("anonymous=1");
        let from = |text: &str| limits.check_address(|| text.parse().unwrap());
        assert_eq!([from("2001:db8::1"), from("2001:db8::2")], [Ok(()); 2]);
        assert!(from("2001:db8:0:0:ffff::3").is_err());
        assert_eq!(from("2001:db8:0:1::1"), Ok(()));
        assert_eq!([from("192.0.2.1"), from("::ffff:192.0.2.1")], [Ok(()); 2]);
        assert!(from("192.0.2.1").is_err());
        assert_eq!(from("192.0.2.2"), Ok(()));
    }

    #[test]
    fn callers_are_forgotten_when_there_are_too_many() {
        let limits = limits("anonymous=1");
        for number in 0..u32::try_from(KNOWN.get()).unwrap() + 1_000 {
            limits.check_address(|| IpAddr::V4(number.into())).unwrap();
        }
        assert_eq!(limits.buckets.lock().unwrap().len(), KNOWN.get());
    }

    #[test]
    fn open_streams_are_counted_while_they_are_open() {
        let limits = limits("customer=0");
        let ann = customer("ann");
        let open: Vec<_> = (0..2).map(|_| limits.stream(&ann).unwrap()).collect();
        assert!(limits.stream(&ann).is_none());
        assert!(limits.stream(&customer("bob")).is_some());
        drop(open);
        assert!(limits.stream(&ann).is_some());
        assert!(limits.streams.lock().unwrap().is_empty());
        let service = Caller::worker(Role::Service, "shop", None);
        let many: Vec<_> = (0..10).map(|_| limits.stream(&service)).collect();
        assert!(many.iter().all(Option::is_some));
    }

    #[test]
    fn rates_are_said_by_role() {
        for wrong in ["customer", "customer=-1", "admin=1", "customer=a", "", "=1"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
        let usual = Rates::usual().with(&["service=0".parse().unwrap()]);
        assert_eq!(usual.service, None);
        assert_eq!(usual.customer, Rates::usual().customer);
    }
}
