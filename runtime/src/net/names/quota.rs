//! How much may be under way at once, in all and for one address, so that nobody takes everybody's.

use std::{collections::HashMap, net::IpAddr, sync::Mutex};

use crate::net::lock;

#[derive(Debug)]
pub struct Quota {
    all: usize,
    each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    each: HashMap<IpAddr, usize>,
}

/// One of them; given back when it goes.
#[derive(Debug)]
pub struct Ticket<'a> {
    quota: &'a Quota,
    address: IpAddr,
}

impl Quota {
    pub fn new(all: usize, each: usize) -> Self {
        Self { all, each, taken: Mutex::default() }
    }

    /// One for an address; none while it, or everybody, has too many.
    pub fn take(&self, address: IpAddr) -> Option<Ticket<'_>> {
        let mut taken = lock(&self.taken);
        let theirs = taken.each.get(&address).copied().unwrap_or(0);
        if taken.all >= self.all || theirs >= self.each {
            return None;
        }
        taken.all += 1;
        taken.each.insert(address, theirs + 1);
        Some(Ticket { quota: self, address })
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut taken = lock(&self.quota.taken);
        taken.all -= 1;
        if let Some(theirs) = taken.each.get_mut(&self.address) {
            *theirs -= 1;
            if *theirs == 0 {
                taken.each.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_everybodys_and_what_is_given_back_is_there_again() {
        let quota = Quota::new(3, 2);
        let [one, two] = ["10.9.0.2", "10.9.0.3"].map(|text| text.parse().unwrap());
        let mut held = vec![quota.take(one).unwrap(), quota.take(one).unwrap()];
        assert!(quota.take(one).is_none());
        held.push(quota.take(two).unwrap());
        assert!(quota.take(two).is_none(), "all are taken");
        held.remove(0);
        assert!(quota.take(two).is_some());
        held.clear();
        let taken = lock(&quota.taken);
        assert_eq!((taken.all, taken.each.len()), (0, 0));
    }
}
