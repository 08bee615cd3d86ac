//! Holdfast in a Kubernetes cluster: who its programs are, by their service accounts, and how a
//! cluster of Holdfast comes to be without a person.

pub mod authorities;
pub mod bootstrap;
pub mod catalog_view;
pub mod client;
pub mod controller;
pub mod doctor;
pub mod enrol;
pub mod failover;
pub mod home;
pub mod kube_view;
pub mod leases;
pub mod manifests;
pub mod objects;
pub mod patience;
pub mod pod;
pub mod review;
pub mod reviewer;
pub mod storage_of;
pub mod strangers;
pub mod survey;
pub mod template;
pub mod zone;
