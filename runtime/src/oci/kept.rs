//! What was made last of something: most containers ask for the same few.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

const KEPT: usize = 8;

/// Values by what they were made of, the newest at the end.
#[derive(Debug)]
pub struct Kept<K, V>(Mutex<VecDeque<(K, V)>>);

impl<K: PartialEq + Clone, V: Clone> Kept<K, V> {
    pub const fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    /// The value of that key; made, and nothing is locked meanwhile, where it is not there.
    pub fn or_make<E>(&self, key: &K, make: impl FnOnce(&K) -> Result<V, E>) -> Result<V, E> {
        let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, value)) = kept().iter().find(|(known, _)| known == key) {
            return Ok(value.clone());
        }
        let value = make(key)?;
        let mut kept = kept();
        kept.push_back((key.clone(), value.clone()));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Ok(value)
    }
}
